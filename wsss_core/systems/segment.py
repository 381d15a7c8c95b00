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
from wsss_core.systems.base import Batch, Progress, Sample, SegmentSystem
from wsss_core.systems.initial import start_from_classifier

_CELL = 4
"""Pixels of the crop per cell of the soft masks: the stride of the decoder's features."""


class Dense(NamedTuple):
    """Logits [N, C, H, W] at the size of the images, and the decoder's last features [N, D, h, w]."""

    logits: Tensor
    features: Tensor


class SegmentationNet(nn.Module):
    """Backbone and decoder."""

    def __init__(self, config: Segmenter, num_classes: int) -> None:
        super().__init__()
        self.features = Features(config)
        self.decoder = make_decoder(
            config.decoder, self.features, num_classes, config.decoder_channels, config.bifpn_layers, config.separable
        )

    def forward(self, images: Tensor, dense: bool = False) -> Tensor | Dense:
        """Return logits [N, C, H, W] at the size of the images [N, 3, H, W]; with `dense`, of the decoder bifpn, its features too."""
        _, levels = self.features(images)
        if dense:
            assert isinstance(self.decoder, BiFPNDecoder)
            features = self.decoder.features(levels)
            return Dense(_enlarge(self.decoder.classify(features), images), features)
        return _enlarge(decode(self.decoder, images, levels), images)


class Segment(SegmentSystem):
    """The segmentation network, its cross-entropy and, if asked for, the contrast across boundaries."""

    config_type = Segmenter

    def build(self) -> nn.Module:
        """Return backbone and decoder."""
        return SegmentationNet(self.config, self.num_classes)

    def start(self, model: nn.Module, inputs: dict[str, Path]) -> None:
        """Load the backbone of the trained classifier, if the stage builds on one (MuSCLe, Fig. 1)."""
        start_from_classifier(model, inputs, self.config.backbone)

    def load(self, index: DataIndex, inputs: dict[str, Path]) -> Callable[[Record], Sample]:
        """Return the function from a record to an augmented image [3, S, S] and labels int64[S, S], 255 where padded.

        For BEACON also `soft` uint8[C, S/4, S/4], the pseudo mask before it was cut, in steps of 1/255: image, labels and soft mask are
        resized, mirrored and cropped alike. Of 4 x 4 pixels it has one, the third of the third row (half a pixel from their centre), as
        all of them would be 16 times as much in every batch; 0 in all channels where that pixel is ignored.
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
            cells = layers[:, _CELL // 2 :: _CELL, _CELL // 2 :: _CELL]
            full = torch.zeros(self.num_classes, *cells.shape[1:], dtype=torch.uint8)
            full[classes] = (cells[1:] * (cells[0] != IGNORE)).to(torch.uint8)
            return {"image": image, "target": layers[0], "soft": full}

        return load

    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the pixel-wise cross-entropy and, if asked for and from its time on, BEACON."""
        config = self.config
        if config.loss != "beacon" or progress.fraction < config.beacon_from:
            return {"segmentation": pixel_cross_entropy(model(batch["image"]), batch["target"])}
        logits, features = cast(Dense, model(batch["image"], dense=True))
        contrast = beacon_loss(
            features,
            logits,
            batch["soft"].float() / 255,
            steps=config.beacon_steps,
            samples=config.beacon_samples,
            threshold=config.beacon_threshold,
            sign=config.beacon_sign,
            ignore=batch["target"] == IGNORE,
            observe=lambda wrong: self.observe(beacon_wrong=wrong),
        )
        # MuSCLe, Eq. 9
        return {"segmentation": pixel_cross_entropy(logits, batch["target"]), "beacon": config.lambda_beacon * contrast}

    def segment(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the network's logits at the size of the images."""
        return model(images)


def _enlarge(logits: Tensor, images: Tensor) -> Tensor:
    return functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def _pseudo_masks(index: DataIndex, directory: Path) -> Callable[[Record], np.ndarray]:
    return lambda record: read_mask(directory / "masks" / f"{record.id}.png", index.num_classes)


def _true_masks(index: DataIndex) -> Callable[[Record], np.ndarray]:
    """The fully supervised upper bound alone: experiments with `supervision: masks`."""
    from wsss_core.data.truth import read_truth

    return lambda record: read_truth(index, record)
