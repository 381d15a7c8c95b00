"""System `affinity`: AffinityNet (Ahn & Kwak, CVPR 2018, "PSA"), which learns semantic affinities of neighbouring cells from CAMs."""

from __future__ import annotations

from torch import Tensor, nn

from wsss_core.config import WALK_BETA, Affinity, Walk
from wsss_core.losses.affinity import affinity_terms, pair_affinity
from wsss_core.nn.affinity import AffinityNet
from wsss_core.nn.neighbours import pair_labels
from wsss_core.systems.base import Batch, Progress
from wsss_core.systems.pairs import Affinities, PairSystem, labels_on_grid, mean_with_mirrored


class AffinitySystem(PairSystem):
    """AffinityNet and its pair loss."""

    config_type = Affinity
    default_beta = WALK_BETA["affinity"]

    def build(self) -> nn.Module:
        """Return AffinityNet."""
        return AffinityNet(self.config)

    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the terms of the pair loss (Eqs. 5 to 8): background pairs / 4, foreground pairs / 4, unlike pairs / 2."""
        features = model(batch["image"])
        pairs = pair_labels(labels_on_grid(batch["target"], features.shape[-2:]), self.config.radius)
        terms = affinity_terms(pair_affinity(features, self.config.radius), pairs)
        return {"background": terms["bg"] / 4, "foreground": terms["fg"] / 4, "negative": terms["neg"] / 2}

    def affinities(self, model: nn.Module, image: Tensor, walk: Walk) -> Affinities:
        """Return W_ij = exp(-|f_i - f_j|) (Eq. 3). With `flip` the features of both images are averaged (ours; PSA sees one image)."""
        features = mean_with_mirrored(model, image, walk.flip)
        return Affinities(pair_affinity(features, self.config.radius)[0])
