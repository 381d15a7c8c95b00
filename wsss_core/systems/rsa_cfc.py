"""System `rsa_cfc`: activation extending based on long-range dependencies (Liu et al., PLoS ONE 18(11) e0288596, 2023).

Puzzle-CAM with two modules in its tile branch. Regional self-attention (RSA) spreads a tile's maps over cells with like features;
cross-image foreground contrast (CFC) draws the foreground features of like images together, tile by tile. Neither has
parameters, and the test path (Algorithm 2) is the whole-image branch alone.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from wsss_core.config import RsaCfcClassifier
from wsss_core.losses.contrast import foreground_contrast, foreground_vectors, foreground_weights, sharing_pairs
from wsss_core.nn.attention import RegionalSelfAttention, kept_deviation
from wsss_core.systems.base import Batch, Progress
from wsss_core.systems.puzzle import Puzzle, TwoBranches


class RsaCfc(Puzzle):
    """RSA + CFC on Puzzle-CAM.

    Notes
    -----
    Decisions where the paper is silent or wrong are in docs/systems/rsa-cfc.md and at `RegionalSelfAttention`, `foreground_weights`,
    `foreground_vectors` and `foreground_contrast`. Of note here: Ĉ* enters classification as it is, and the foreground vectors as what is seen
    of it (`foreground`), with floors, for the direction of a vector next to nothing has a huge gradient: single steps of that kind
    wrecked trainings. Observed is how much of the spatial deviation of tile maps RSA keeps, `attention_kept`.
    """

    config_type = RsaCfcClassifier

    def __init__(self, config: RsaCfcClassifier, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.attention = None if config.attention == "none" else RegionalSelfAttention(config.attention, config.temperature)

    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the terms of L = L_cls + λ L_pos + β L_re (Eq. 16)."""
        labels = batch["label"]
        maps, tile_features, tile_maps = cast(TwoBranches, model(batch["image"], tiles=True))
        if self.attention is not None:
            plain, tile_maps = tile_maps, self.attention(tile_features, tile_maps)  # Ĉ*, Eqs. 4 to 6
            self.observe(attention_kept=kept_deviation(tile_maps, plain))
        losses = self.puzzle_losses(maps, tile_maps, labels, progress)  # Eqs. 7 to 9 and 15
        if self.config.lambda_contrast > 0:
            present = labels.repeat(4, 1) if self.config.present_only else None  # tile-major
            vectors = foreground_vectors(tile_features, foreground_weights(tile_maps, self.config.foreground), present)  # Eq. 10
            pairs = sharing_pairs(labels) if self.config.pairs == "sharing" else None
            contrast = foreground_contrast(vectors, alpha=self.config.alpha, pairs=pairs)  # Eqs. 11 to 14
            losses["contrast"] = self.config.lambda_contrast * contrast
        return losses
