"""System `mcl`: the multi-contrast learning encoder of MuSCLe (Yuan et al., Pattern Recognition 137, 109298, 2023).

A classifier whose features are compared at three levels: images with the same classes are drawn together and those with other classes
apart (IMC); the maps of two overlapping crops have to agree cell by cell (PIXC), and region by region (PRC). One of the two crops goes
through an attention module, which thereby learns to spread the maps; at test time the maps are taken after it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align  # type: ignore[import-untyped]

from wsss_core.config import Classifier, MclClassifier
from wsss_core.data.index import DataIndex, Record
from wsss_core.losses.classification import hybrid_loss, multilabel_soft_margin
from wsss_core.losses.contrast import image_contrast, pixel_contrast, supervised_contrast
from wsss_core.losses.regional import regional_contrast
from wsss_core.nn.attention import PixelCorrelation, SpatialAttention
from wsss_core.systems.base import Batch, Progress, Sample
from wsss_core.systems.cam import Cam, CamNet

_SHORTEST = 0.25
"""Of the vectors that PIXC compares, in logits: nine tenths of ReLU's squared gradient came from shorter ones, whose median length is 1."""


class Views(NamedTuple):
    """What the network gives of a batch of N images with G classes, in the letters of the paper.

    Attributes
    ----------
    maps
        M, [N, G, h, w], of the whole images.
    embeddings
        z, [N, D], the mean of the last features.
    attended
        M', [N, G, m, n], of the first crops, after the attention module; None without crops.
    other_maps
        M~, [N, G, m, n], of the second crops, without gradient; None without crops.
    """

    maps: Tensor
    embeddings: Tensor
    attended: Tensor | None = None
    other_maps: Tensor | None = None


class MclNet(CamNet):
    """Backbone, 1x1 classifier and an attention module on the maps."""

    def __init__(self, config: MclClassifier, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.attention: nn.Module | None = None
        if config.compares_crops:
            pcm = config.attention == "pcm"
            self.attention = PixelCorrelation(self.features.out_channels) if pcm else spatial_attention(config, num_classes)

    def maps_of(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps after the attention module and before it, both [N, G, h, w]."""
        final, _ = self.features(images)
        maps = self.classifier(final)
        return maps if self.attention is None else self.attention(final, maps), maps

    def forward(self, images: Tensor, crops: Tensor | None = None) -> Views:  # type: ignore[override]
        """Return the views of images [N, 3, H, W] and, if given, of their pairs of crops [N, 2, 3, S, S]."""
        final, _ = self.features(images)
        maps, embeddings = self.classifier(final), final.mean(dim=(2, 3))
        if crops is None:
            return Views(maps, embeddings)
        first, second = crops.unbind(dim=1)
        attended, _ = self.maps_of(first)
        with torch.no_grad():  # sg(.)
            other_maps = super().forward(second)
        return Views(maps, embeddings, attended, other_maps)


class Mcl(Cam):
    """The multi-contrast learning encoder.

    Notes
    -----
    Decisions where the paper is silent are at the losses, at `SpatialAttention`, and here: the first crop is the one that is attended to, the
    second the one without gradient, and not also the other way round; both are cut from the image that the classification sees,
    where it is no padding, and their centres are at most half a crop apart in either direction. The agreement is measured on a
    grid over what both show, as fine as the maps. Batch normalisation learns its statistics from images and crops alike. Without
    `lambda_pixel` and `lambda_region` nothing would teach the attention module: there is none, and the maps are the plain classifier's, unless
    `test_maps` wants them after the module as it starts. PIXC compares vectors of at least a quarter of a logit.
    """

    config_type: ClassVar[type[Classifier]] = MclClassifier

    def build(self) -> nn.Module:
        """Return backbone, classifier and attention module."""
        return MclNet(self.config, self.num_classes)

    def load(self, index: DataIndex, inputs: dict[str, Path]) -> Callable[[Record], Sample]:
        """Return the function from a record to image [3, S, S] and label [C-1]; of systems that compare crops also the pair
        `crops` [2, 3, P, P] and `overlap` [2, 4], what both show in the pixels (x0, y0, x1, y1) of either.
        """
        padded_sample = self.load_padded(index)

        def load(record: Record) -> Sample:
            image, label, padded = padded_sample(record)
            if not self.config.compares_crops:
                return {"image": image, "label": label}
            crops, overlap = crop_pair(image, ~padded, self.config.crop_pair)
            return {"image": image, "label": label, "crops": crops, "overlap": overlap}

        return load

    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the terms of Eq. 8 that are switched on by now."""
        config, epoch, labels = self.config, progress.epoch, batch["label"]
        pixel, region = (
            weight > 0 and epoch >= start
            for weight, start in ((config.lambda_pixel, config.pixel_from), (config.lambda_region, config.region_from))
        )
        views = cast(Views, model(batch["image"], batch["crops"]) if pixel or region else model(batch["image"]))
        logits = views.maps.mean(dim=(2, 3))
        hybrid = config.classification_loss == "hybrid"
        classification = hybrid_loss(logits, labels, config.pair_loss) if hybrid else multilabel_soft_margin(logits, labels)  # Eq. 7
        losses = {"classification": classification}
        if config.lambda_image > 0 and epoch >= config.image_from:
            contrast = image_contrast if config.image_loss == "imc" else supervised_contrast
            losses["image"] = config.lambda_image * contrast(views.embeddings, labels, temperature=config.temperature)  # Eq. 1
        if pixel or region:
            assert views.attended is not None and views.other_maps is not None
            attended, other = (
                _overlap(maps, batch["overlap"][:, i], config.crop_pair) for i, maps in enumerate((views.attended, views.other_maps))
            )
            if pixel:
                cosine = pixel_contrast(attended, other, vectors=config.pixel_vectors, shortest=_SHORTEST)
                losses["pixel"] = config.lambda_pixel * cosine  # Eq. 3
            if region:
                losses["region"] = config.lambda_region * regional_contrast(attended, other)  # Eqs. 4 to 6
        return losses

    def cams(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return ReLU(M'), the maps after the attention module, or ReLU(M) as `test_maps` wants it, and the class logits, of the maps before it."""
        assert isinstance(model, MclNet)
        attended, maps = model.maps_of(images)
        if self.config.test_maps == "plain":
            attended = maps
        elif self.config.test_maps == "attended" and model.attention is None:
            attended = spatial_attention(self.config, self.num_classes).to(maps.device)(images, maps)
        return functional.relu(attended), maps.mean(dim=(2, 3))


def spatial_attention(config: MclClassifier, num_classes: int) -> SpatialAttention:
    """Return the spatial attention as it starts, `sam` or, as printed, `sam_plain`."""
    return SpatialAttention(num_classes - 1, temperature=0.1 if config.attention == "sam" else None)


def crop_pair(image: Tensor, inside: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Cut two overlapping squares out of an image, at random.

    Parameters
    ----------
    image
        [3, S, S].
    inside
        bool[S, S], true where the image is no padding: a rectangle.
    side
        P <= S, of the squares. They lie inside the rectangle, or around it where it is the smaller one; the second is shifted against
        the first by at most P/2 in either direction.

    Returns
    -------
    crops, overlap
        [2, 3, P, P], and float32[2, 4]: what both show, as (x0, y0, x1, y1) in the pixels of each.
    """
    starts = [_two_starts(inside.any(dim=1 - axis), side) for axis in (0, 1)]  # rows, columns
    crops = torch.stack([image[:, y : y + side, x : x + side] for y, x in zip(*starts, strict=True)])
    spans = [[(max(pair) - own, min(pair) + side - own) for own in pair] for pair in starts]
    overlap = [(x0, y0, x1, y1) for (y0, y1), (x0, x1) in zip(*spans, strict=True)]
    return crops, torch.tensor(overlap, dtype=torch.float32)


def _two_starts(inside: Tensor, side: int) -> tuple[int, int]:
    """Draw where two intervals of length `side` begin, given where on their axis there is something: bool[S]."""
    there = inside.nonzero()
    begin, end = int(there[0]), int(there[-1]) + 1
    low, high = sorted((begin, end - side))
    low, high = max(low, 0), min(high, len(inside) - side)
    first = int(torch.randint(low, high + 1, ()))
    second = int(torch.randint(max(low, first - side // 2), min(high, first + side // 2) + 1, ()))
    return first, second


def _overlap(maps: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Sample maps [N, G, h, w] of crops of `side` pixels on a grid h x w over boxes [N, 4] in pixels."""
    scale = maps.shape[-1] / side
    return roi_align(
        maps.float(), list(boxes[:, None].float().unbind()), maps.shape[-2:], spatial_scale=scale, sampling_ratio=1, aligned=True
    )
