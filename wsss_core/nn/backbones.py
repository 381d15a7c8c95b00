"""timm networks as feature extractors with a chosen output stride and weights from the net, a local file, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.config import Backbone
from wsss_core.errors import UserError, did_you_mean

_PROBE = 224  # a multiple of all usual patch sizes and strides


class Features(nn.Module):
    """A timm network without its classifier.

    Parameters
    ----------
    config
        Name, weights and output stride. Dense networks (convolutions) are dilated to the output stride; for plain vision
        transformers the patch size is the stride and has to agree. Raises `UserError` for an unknown name, an output
        stride that the network does not offer, and weights that do not load.
    frozen
        Never train it: no gradients, and its batch normalisation keeps its statistics.

    Attributes
    ----------
    channels, strides
        Of the feature levels, from fine to coarse.
    out_channels
        Channels of the final feature map, which may have a further layer on top of the last level (MobileNet's
        `conv_head`).
    """

    def __init__(self, config: Backbone, frozen: bool = False) -> None:
        super().__init__()
        self._config = config
        self.net = _create(config)
        self.frozen = frozen
        with torch.no_grad():
            self.net.eval()
            final, levels = self(torch.zeros(1, 3, _PROBE, _PROBE))
        self.requires_grad_(not frozen)
        self.train()
        self.channels = [level.shape[1] for level in levels]
        self.strides = [_PROBE // level.shape[-1] for level in levels]
        self.out_channels = final.shape[1]
        if self.strides[-1] != config.output_stride:
            raise UserError(f"backbone: {config.backbone} has stride {self.strides[-1]}, not output_stride {config.output_stride}")

    def train(self, mode: bool = True) -> Features:
        """Switch between training and evaluation; a frozen network stays in evaluation, and so does frozen batch normalisation."""
        super().train(mode and not self.frozen)
        if self._config.keeps_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the final feature map [N, D, h, w] and all levels [N, D_i, h_i, w_i] of images [N, 3, H, W]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            final, levels = self.net.forward_intermediates(images)  # type: ignore[operator]
        same_grid = final.ndim == 4 and final.shape[-2:] == levels[-1].shape[-2:]
        return (final if same_grid else levels[-1]), levels


class PatchFeatures(Features):
    """A plain vision transformer, for images of any size: they are resized to the nearest multiple of the patch size.

    Raises `UserError` for other networks, besides what `Features` raises.
    """

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the patch embeddings [N, D, h, w] after the last normalisation, and those of every block before it, of images [N, 3, H, W]."""
        config, patch = self._config, self._config.output_stride
        size = tuple(max(1, round(int(side) / patch)) * patch for side in images.shape[-2:])  # int: under tracing a size is a tensor
        if size != images.shape[-2:]:
            images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens, levels = self.net.forward_intermediates(images)  # type: ignore[operator]
        if tokens.ndim != 3:
            raise UserError(f"backbone: {config.backbone} is no plain vision transformer (one grid of patches all through)")
        height, width = levels[-1].shape[-2:]
        patches = tokens[:, -height * width :]  # the class token and its like come first
        return patches.transpose(1, 2).unflatten(2, (height, width)), levels

    def last_blocks(self, count: int) -> list[nn.Module]:
        """Return the last `count` blocks and the final normalisation; raises `UserError` if there are not so many."""
        blocks = list(self.net.blocks)  # type: ignore[arg-type]
        if count > len(blocks):
            raise UserError(f"train_blocks: {self._config.backbone} has {len(blocks)} blocks, got {count}")
        return [*blocks[-count:], self.net.norm]  # type: ignore[list-item]


def statistics(config: Backbone) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the channel means and standard deviations (for images in [0, 1]) that the backbone's weights expect."""
    if config.mean is not None and config.std is not None:
        return config.mean, config.std
    known = timm.get_pretrained_cfg(config.backbone) if timm.is_model(config.backbone) else None
    mean = known.mean if known else timm.data.IMAGENET_DEFAULT_MEAN
    std = known.std if known else timm.data.IMAGENET_DEFAULT_STD
    return config.mean or tuple(mean), config.std or tuple(std)


def memory_format(model: nn.Module, channels_last: bool | Literal["auto"]) -> torch.memory_format:
    """Return the memory layout of a model by the configuration's `channels_last`."""
    chosen = prefers_channels_last(model) if channels_last == "auto" else channels_last
    return torch.channels_last if chosen else torch.contiguous_format


def prefers_channels_last(model: nn.Module) -> bool:
    """Whether the memory layout "channels last" pays: convolutional networks yes, those with layer normalisation (transformers, ConvNeXt) no.

    Measured on CPU with torch 2.15, one thread, images/s in training and in inference: ResNet-18 1.2 and 1.1 times as many, MobileNetV2 1.4 and
    1.3, EfficientNet-B0 1.5 and 1.1, ConvNeXt 0.97 and 1.1, ViT-tiny 0.95 and 1.1.
    """
    convolutions = any(isinstance(m, nn.Conv2d) for m in model.modules())
    return convolutions and not has_layer_norm(model)


def has_layer_norm(model: nn.Module) -> bool:
    """Whether a network normalises by layer: transformers and ConvNeXt do, other convolutional networks by batch or group."""
    return any(isinstance(m, nn.LayerNorm) for m in model.modules())


def _create(config: Backbone) -> nn.Module:
    name = config.backbone
    if not timm.is_model(name):
        raise UserError(f"backbone: timm has no network '{name}'{did_you_mean(name, timm.list_models())}")
    options: dict[str, Any] = {"num_classes": 0, "output_stride": config.output_stride}
    try:
        net = timm.create_model(name, **options)
    except TypeError:  # no dilation to set: transformers
        options = {"num_classes": 0, "dynamic_img_size": True, "dynamic_img_pad": True}
        try:
            net = timm.create_model(name, **options)
        except TypeError:
            raise UserError(f"backbone: {name} offers no output_stride and takes images of one size alone") from None
    except (AssertionError, NotImplementedError, ValueError):
        raise UserError(f"backbone: {name} does not offer output_stride {config.output_stride}") from None
    if not hasattr(net, "forward_intermediates"):
        raise UserError(f"backbone: timm's {name} gives no feature levels (no forward_intermediates)")
    if config.weights != "none":
        net = _with_weights(config, options)
    return net


def _with_weights(config: Backbone, options: dict[str, Any]) -> nn.Module:
    overlay = None
    if config.weights != "pretrained":
        if not Path(config.weights).is_file():
            raise UserError(f"weights: {config.weights}: no such file; expected 'pretrained', 'none' or a file of weights")
        overlay = {"file": config.weights}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = timm.create_model(config.backbone, pretrained=True, pretrained_cfg_overlay=overlay, **options)
            torch.manual_seed(0)
            fresh = timm.create_model(config.backbone, **options)
    except Exception as error:  # timm and its hub client raise of many kinds here
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if overlay:
            raise UserError(f"weights: {config.weights} does not fit {config.backbone}: {reason}") from None
        raise UserError(
            f"weights: pretrained weights of {config.backbone} could not be fetched ({reason}); give a local file, or 'none'"
        ) from None
    # timm loads what fits and merely warns of the rest: a network left at its random start must not pass for a trained one.
    start = dict(fresh.named_parameters())
    untouched = [name for name, p in net.named_parameters() if p.ndim > 1 and torch.equal(p, start[name])]
    if untouched:
        raise UserError(
            f"weights: {config.weights} does not fit {config.backbone}: nothing in it for {untouched[0]} ({len(untouched)} tensors)"
        )
    return net
