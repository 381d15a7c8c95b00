"""System `puzzle`: Puzzle-CAM (Jo and Yu, ICIP 2021; arXiv:2101.11253), the baseline of RSA + CFC.

One network sees the whole image and its four tiles. A classifier looks at an object's most telling part; in a tile that part
is often missing, so the tiles' maps lie on more of the object. Both have to agree, so the whole image's maps grow.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar, NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional

from wsss_core.config import Classifier, PuzzleClassifier, RsaCfcClassifier
from wsss_core.losses.classification import multilabel_soft_margin
from wsss_core.losses.reconstruction import masked_l1
from wsss_core.nn.normalisation import without_running_statistics
from wsss_core.nn.tiles import merge, split
from wsss_core.systems.base import Batch, Progress
from wsss_core.systems.cam import Cam, CamNet


class TwoBranches(NamedTuple):
    """What the network gives of a batch of N images with G classes, in the letters of RSA + CFC (Liu et al. 2023).

    Attributes
    ----------
    maps
        C, [N, G, h, w], of the whole images.
    tile_features, tile_maps
        Ŷ and Ĉ, [4N, D, m, n] and [4N, G, m, n], of the tiles, in the order of `tiles.split`.
    """

    maps: Tensor
    tile_features: Tensor
    tile_maps: Tensor


class PuzzleNet(CamNet):
    """Backbone and 1x1 classifier, for whole images and for tiles."""

    def __init__(self, config: PuzzleClassifier | RsaCfcClassifier, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.tile_statistics = config.tile_statistics

    def forward(self, images: Tensor, tiles: bool = False) -> Tensor | TwoBranches:  # type: ignore[override]
        """Return the maps [N, G, h, w] of the whole images, as `CamNet`; with `tiles` those of both branches.

        An image of odd height or width gets one more row or column of zeros (the mean) before it is cut.
        """
        maps = super().forward(images)
        if not tiles:
            return maps
        height, width = images.shape[-2:]
        with nullcontext() if self.tile_statistics else without_running_statistics(self.features):
            tile_features, _ = self.features(split(functional.pad(images, (0, width % 2, 0, height % 2))))
        return TwoBranches(maps, tile_features, self.classifier(tile_features))


class Puzzle(Cam):
    """Puzzle-CAM.

    Notes
    -----
    The test path is the plain classifier's: the whole image alone. Decisions: the maps enter the classification without ReLU, and the
    reconstruction is a mean over all cells and classes, those of absent classes being 0 (both as in the published code). It compares the maps as
    they are seen, `reconstruction_level: cams`; on the logits the cheapest way to agree is to put a class on what looks alike in image and tile, its
    surroundings, unless tiles are large. The running statistics of batch normalisation are those of whole images, which the test path sees
    (`tile_statistics`; ours).
    """

    config_type: ClassVar[type[Classifier]] = PuzzleClassifier

    def build(self) -> nn.Module:
        """Return backbone and classifier."""
        return PuzzleNet(self.config, self.num_classes)

    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return both classification losses and the reconstruction, ramped."""
        maps, _, tile_maps = cast(TwoBranches, model(batch["image"], tiles=True))
        return self.puzzle_losses(maps, tile_maps, batch["label"], progress)

    def puzzle_losses(self, maps: Tensor, tile_maps: Tensor, labels: Tensor, progress: Progress) -> dict[str, Tensor]:
        """Return the losses of whole maps [N, G, h, w] and tile maps [4N, G, m, n] against labels [N, G]."""
        merged = merge(tile_maps)
        losses = {
            "classification": multilabel_soft_margin(maps.mean(dim=(2, 3)), labels),
            "classification_tiles": multilabel_soft_margin(merged.mean(dim=(2, 3)), labels),
        }
        if self.config.beta_reconstruction > 0:
            losses["reconstruction"] = self.beta(progress) * masked_l1(maps, merged, labels, self.config.reconstruction_level)
        return losses

    def beta(self, progress: Progress) -> float:
        """Return the weight of the reconstruction: from 0 to `beta_reconstruction` over the first `ramp` of the training, then constant."""
        weight, ramp = self.config.beta_reconstruction, self.config.ramp
        return weight if ramp == 0 else weight * min(progress.fraction / ramp, 1.0)
