"""The decoders by name, for segmenters and for classifiers that segment."""

from __future__ import annotations

from torch import Tensor, nn

from wsss_core.errors import UserError
from wsss_core.nn.backbones import Features
from wsss_core.nn.bifpn import BiFPNDecoder
from wsss_core.nn.deeplab import DeepLabV2, DeepLabV3, DeepLabV3Plus
from wsss_core.nn.unet import UNet


def make_decoder(name: str, features: Features, num_classes: int, width: int, layers: int = 1, separable: bool = False) -> nn.Module:
    """Return the decoder `name` (see `config.Segmenter` and `config.IsimClassifier`) for the levels of a backbone.

    `width` counts its channels where that is open, `layers` those of a BiFPN; `separable` is for DeepLabv3+. Raises `UserError` if the backbone lacks a level that the decoder needs.
    """
    channels, strides = features.channels, features.strides
    if name == "deeplabv2":
        return DeepLabV2(channels[-1], num_classes)
    if name == "deeplabv3":
        return DeepLabV3(channels[-1], num_classes, strides[-1])
    if name == "deeplabv3plus":
        if 4 not in strides:
            raise UserError(f"decoder: deeplabv3plus needs a level of stride 4; the backbone has {strides}")
        return DeepLabV3Plus(channels[-1], channels[strides.index(4)], strides.index(4), num_classes, strides[-1], width, separable)
    if name == "bifpn":
        return BiFPNDecoder(channels, strides, num_classes, width, layers)
    upsampling = {"unet": "nearest", "unet_bilinear": "bilinear", "unet_transposed": "transposed"}[name]
    return UNet(channels, strides, num_classes, width, upsampling)


def decode(decoder: nn.Module, images: Tensor, levels: list[Tensor]) -> Tensor:
    """Return logits [N, C, h, w], at the decoder's own resolution, of images [N, 3, H, W] and their feature levels."""
    return decoder(levels, images) if isinstance(decoder, UNet) else decoder(levels)
