"""System `cam`: class activation maps of a plain multi-label classifier (Zhou et al. 2016), the baseline of the field.

A backbone's last feature map f, global average pooling and a linear classifier w without bias; the map of class c is
ReLU(w_c . f). The classifier is a 1x1 convolution, so that maps and scores come from one pass.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.config import CamClassifier, Classifier
from wsss_core.data.images import read_image
from wsss_core.data.index import DataIndex, Record
from wsss_core.losses.classification import multilabel_soft_margin
from wsss_core.nn.backbones import Features
from wsss_core.systems.base import Batch, CamSystem, Progress, Sample


class CamNet(nn.Module):
    """Backbone and 1x1 classifier."""

    def __init__(self, config: Classifier, num_classes: int) -> None:
        super().__init__()
        self.features = Features(config)
        self.classifier = nn.Conv2d(self.features.out_channels, num_classes - 1, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return w_c . f for every cell, [N, C-1, h, w]; its mean over the cells is the class logit."""
        final, _ = self.features(images)
        return self.classifier(final)


class Cam(CamSystem):
    """The plain classifier."""

    config_type: ClassVar[type[Classifier]] = CamClassifier

    def build(self) -> nn.Module:
        """Return backbone and classifier."""
        return CamNet(self.config, self.num_classes)

    def load(self, index: DataIndex, inputs: dict[str, Path]) -> Callable[[Record], Sample]:
        """Return the function from a record to an augmented image [3, S, S] and its label [C-1]."""
        transform = self.transform()

        def load(record: Record) -> Sample:
            image, _ = transform(read_image(index.image_path(record)), None)
            return {"image": image, "label": torch.from_numpy(index.multi_hot(record))}

        return load

    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the classification loss."""
        logits = model(batch["image"]).mean(dim=(2, 3))
        return {"classification": multilabel_soft_margin(logits, batch["label"])}

    def cams(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return ReLU(w_c . f) and the class logits."""
        maps = model(images)
        return functional.relu(maps), maps.mean(dim=(2, 3))
