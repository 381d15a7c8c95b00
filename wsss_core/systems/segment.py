"""System `segment`: a segmentation network trained on pseudo masks, the last step of every multi-stage method.

Trained on the true masks instead it is the fully supervised upper bound.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.config import Segmenter
from wsss_core.data.images import read_image, read_mask
from wsss_core.data.index import DataIndex, Record
from wsss_core.errors import UserError
from wsss_core.losses.segmentation import pixel_cross_entropy
from wsss_core.nn.backbones import Features
from wsss_core.nn.decoders import decode, make_decoder
from wsss_core.systems.base import Batch, Progress, Sample, System


class SegmentationNet(nn.Module):
    """Backbone and decoder."""

    def __init__(self, config: Segmenter, num_classes: int) -> None:
        super().__init__()
        self.features = Features(config)
        self.decoder = make_decoder(config.decoder, self.features, num_classes, config.decoder_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C, H, W] at the size of the images [N, 3, H, W]."""
        _, levels = self.features(images)
        logits = decode(self.decoder, images, levels)
        return functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


class Segment(System):
    """The segmentation network and its cross-entropy."""

    config_type = Segmenter

    def build(self) -> nn.Module:
        """Return backbone and decoder."""
        return SegmentationNet(self.config, self.num_classes)

    def load(self, index: DataIndex, inputs: dict[str, Path]) -> Callable[[Record], Sample]:
        """Return the function from a record to an augmented image [3, S, S] and labels int64[S, S], 255 where padded."""
        transform = self.transform()
        labels = _true_masks(index) if "pseudo" not in inputs else _pseudo_masks(index, inputs["pseudo"])

        def load(record: Record) -> Sample:
            picture = read_image(index.image_path(record))
            mask = labels(record)
            if mask.shape != picture.shape[:2]:
                raise UserError(
                    f"{index.image_path(record)}: its mask is {mask.shape[1]}x{mask.shape[0]}, the image {picture.shape[1]}x{picture.shape[0]}"
                )
            image, target = transform(picture, mask)
            return {"image": image, "target": target}

        return load

    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the pixel-wise cross-entropy."""
        return {"segmentation": pixel_cross_entropy(model(batch["image"]), batch["target"])}


def _pseudo_masks(index: DataIndex, directory: Path) -> Callable[[Record], np.ndarray]:
    return lambda record: read_mask(directory / "masks" / f"{record.id}.png", index.num_classes)


def _true_masks(index: DataIndex) -> Callable[[Record], np.ndarray]:
    """The fully supervised upper bound alone: experiments with `supervision: masks`."""
    from wsss_core.data.truth import read_truth

    return lambda record: read_truth(index, record)
