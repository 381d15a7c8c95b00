"""System `segment`: a segmentation network trained on pseudo masks, the last step of every multi-stage method.

Trained on the true masks instead it is the fully supervised upper bound.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.config import Segmenter
from wsss_core.data.images import IGNORE, read_image, read_mask
from wsss_core.data.index import DataIndex, Record
from wsss_core.errors import UserError
from wsss_core.losses.beacon import beacon_loss
from wsss_core.losses.segmentation import pixel_cross_entropy
from wsss_core.nn.backbones import Features
from wsss_core.nn.bifpn import BiFPNDecoder
from wsss_core.nn.decoders import decode, make_decoder
from wsss_core.refine.soft_masks import SoftMasks, one_hot
from wsss_core.systems.base import Batch, Progress, Sample, System

_CELL = 4
"""Pixels of the crop per cell of the soft masks: the stride of the decoder's features."""


class Dense(NamedTuple):
    """Logits [N, C, H, W] at the size of the images, and the decoder's last features [N, D, h, w] with their own logits [N, C, h, w]."""

    logits: Tensor
    features: Tensor
    coarse: Tensor


class SegmentationNet(nn.Module):
    """Backbone and decoder."""

    def __init__(self, config: Segmenter, num_classes: int) -> None:
        super().__init__()
        self.features = Features(config)
        self.decoder = make_decoder(config.decoder, self.features, num_classes, config.decoder_channels, config.bifpn_layers)

    def forward(self, images: Tensor, dense: bool = False) -> Tensor | Dense:
        """Return logits [N, C, H, W] at the size of the images [N, 3, H, W]; with `dense`, of the decoder bifpn, its features too."""
        _, levels = self.features(images)
        if dense:
            assert isinstance(self.decoder, BiFPNDecoder)
            features = self.decoder.features(levels)
            coarse = self.decoder.classify(features)
            return Dense(_enlarge(coarse, images), features, coarse)
        return _enlarge(decode(self.decoder, images, levels), images)


class Segment(System):
    """The segmentation network, its cross-entropy and, if asked for, the contrast across boundaries."""

    config_type = Segmenter

    def build(self) -> nn.Module:
        """Return backbone and decoder."""
        return SegmentationNet(self.config, self.num_classes)

    def load(self, index: DataIndex, inputs: dict[str, Path]) -> Callable[[Record], Sample]:
        """Return the function from a record to an augmented image [3, S, S] and labels int64[S, S], 255 where padded.

        For BEACON also `soft` uint8[C, S/4, S/4], the pseudo mask before it was cut, in steps of 1/255: image, labels and soft mask are
        resized, mirrored and cropped alike.
        """
        transform = self.transform()
        labels = _true_masks(index) if "pseudo" not in inputs else _pseudo_masks(index, inputs["pseudo"])
        soft = None
        if self.config.loss == "beacon":
            soft = SoftMasks(inputs["scores"], inputs["pseudo"]).read if "pseudo" in inputs else one_hot

        def load(record: Record) -> Sample:
            picture = read_image(index.image_path(record))
            mask = labels(record)
            if mask.shape != picture.shape[:2]:
                raise UserError(
                    f"{index.image_path(record)}: its mask is {mask.shape[1]}x{mask.shape[0]}, the image {picture.shape[1]}x{picture.shape[0]}"
                )
            if soft is None:
                image, target = transform(picture, mask)
                return {"image": image, "target": target}
            channels, classes = soft(record.id, mask)
            image, layers = transform(picture, np.concatenate([mask[None], channels]))
            assert layers is not None
            small = layers[1:, _CELL // 2 :: _CELL, _CELL // 2 :: _CELL].to(torch.uint8)
            full = small.new_zeros(self.num_classes, *small.shape[1:])
            full[classes] = small
            return {"image": image, "target": layers[0], "soft": full}

        return load

    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the pixel-wise cross-entropy and, if asked for, BEACON."""
        if self.config.loss != "beacon":
            return {"segmentation": pixel_cross_entropy(model(batch["image"]), batch["target"])}
        config = self.config
        logits, features, coarse = cast(Dense, model(batch["image"], dense=True))
        size = features.shape[-2:]
        padded = functional.interpolate((batch["target"] == IGNORE)[:, None].float(), size=size, mode="nearest-exact")[:, 0] > 0
        soft = functional.interpolate(batch["soft"].float() / 255, size=size, mode="nearest-exact")
        contrast = beacon_loss(
            features,
            coarse,
            soft,
            steps=max(1, round(config.beacon_steps / _CELL)),
            samples=config.beacon_samples,
            threshold=config.beacon_threshold,
            ignore=padded,
        )
        # MuSCLe, Eq. 9
        return {"segmentation": pixel_cross_entropy(logits, batch["target"]), "beacon": config.lambda_beacon * contrast}


def _enlarge(logits: Tensor, images: Tensor) -> Tensor:
    return functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def _pseudo_masks(index: DataIndex, directory: Path) -> Callable[[Record], np.ndarray]:
    return lambda record: read_mask(directory / "masks" / f"{record.id}.png", index.num_classes)


def _true_masks(index: DataIndex) -> Callable[[Record], np.ndarray]:
    """The fully supervised upper bound alone: experiments with `supervision: masks`."""
    from wsss_core.data.truth import read_truth

    return lambda record: read_truth(index, record)
