"""System `boundary`: the network of IRN (Ahn, Cho & Kwak, CVPR 2019), which learns class boundaries and displacements from CAMs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from wsss_core.config import WALK_BETA, Boundary, Walk
from wsss_core.data.images import IGNORE
from wsss_core.losses.boundary import boundary_losses
from wsss_core.nn.boundary import BoundaryNet
from wsss_core.refine.random_walk import boundary_affinity
from wsss_core.systems.base import Batch, Progress
from wsss_core.systems.pairs import Affinities, PairSystem, labels_on_grid, mean_with_mirrored


class BoundarySystem(PairSystem):
    """The boundary network and its losses."""

    config_type = Boundary
    default_beta = WALK_BETA["boundary"]

    def build(self) -> nn.Module:
        """Return the network with its heads."""
        return BoundaryNet(self.config)

    def losses(self, model: nn.Module, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Return the four terms, each half: (pos + neg) / 2 + (displacement fg + bg) / 2."""
        edge_logits, displacement = model(batch["image"])
        labels = labels_on_grid(batch["target"], edge_logits.shape[-2:])
        return {name: term / 2 for name, term in boundary_losses(edge_logits, displacement, labels, self.config.radius).items()}

    @torch.inference_mode()
    def after_training(self, model: nn.Module, batches: Iterable[Batch]) -> None:
        """Set the mean shift: the mean displacement over all cells with a sure label, in the batches of one more epoch.

        (Ours: augmented crops, hence no padding; IRN takes whole images. With several GPUs: the share of the first.)
        """
        if not isinstance(model, BoundaryNet) or model.displacement is None:
            return
        shift = model.displacement.mean_shift
        shift.mean.zero_()
        total, count = torch.zeros_like(shift.mean), torch.zeros((), device=shift.mean.device)
        for batch in batches:
            _, displacement = model(batch["image"])
            sure = (labels_on_grid(batch["target"], displacement.shape[-2:]) != IGNORE).unsqueeze(1)
            total += (displacement.float() * sure).sum(dim=(0, 2, 3))
            count += sure.sum()
        shift.mean.copy_(total / count.clamp(min=1))

    def affinities(self, model: nn.Module, image: Tensor, walk: Walk) -> Affinities:
        """Return a_ij = 1 - the greatest boundary probability on the way from i to j, and the boundary map."""
        logits = mean_with_mirrored(lambda images: model(images)[0], image, walk.flip)
        boundary = logits.sigmoid()[0, 0]
        return Affinities(boundary_affinity(boundary, walk.radius), boundary)
