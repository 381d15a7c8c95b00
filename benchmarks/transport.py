"""Earth mover's distances between patches (MuSCLe's regional contrast): one pair of patches after the other, or all at once."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import Forms, HotSpot, Setup
from wsss_core.losses.transport import sinkhorn

REG, ITERATIONS = 0.1, 50


def looped_sinkhorn(cost: Tensor) -> tuple[Tensor, Tensor]:
    """The published form: per pair of patches, potentials in units of the cost, and the shifted cost computed again for each of both."""
    distances, plans = [], []
    for problem in cost:
        mu, nu = (problem.new_full((cells,), 1 / cells) for cells in problem.shape)
        f, g = torch.zeros_like(mu), torch.zeros_like(nu)

        def shifted(problem: Tensor, f: Tensor, g: Tensor) -> Tensor:
            return (-problem + f[:, None] + g[None, :]) / REG

        for _ in range(ITERATIONS):
            g = REG * (torch.log(nu) - torch.logsumexp(shifted(problem, f, g), dim=0)) + g
            f = REG * (torch.log(mu) - torch.logsumexp(shifted(problem, f, g), dim=1)) + f
        plan = torch.exp(shifted(problem, f, g))
        plans.append(plan)
        distances.append((plan * problem).sum())
    return torch.stack(distances), torch.stack(plans)


def batched_sinkhorn(cost: Tensor) -> tuple[Tensor, Tensor]:
    a, b = (cost.new_full((len(cost), cells), 1 / cells) for cells in cost.shape[1:])
    return sinkhorn(cost, a, b, reg=REG, iterations=ITERATIONS)


def greatest_difference(expected: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor]) -> float:
    """Of distances, which are of the order of 0.1, and of entries of plans in parts of a cell's mass."""
    (distance, plan), (our_distance, our_plan) = expected, ours
    return max(float((distance - our_distance).abs().max()), float((plan - our_plan).abs().max() * plan.shape[1]))


def patches(setup: Setup) -> Forms:
    """8 images, 14 x 14 maps of 21 channels: 3 x 3 patches of 6 x 6 cells (stride 4) against 2 x 2 patches of 7 x 7."""
    images, dynamic, static = (1, (2, 6), (4, 8)) if setup.tiny else (8, (9, 36), (4, 49))
    generator = torch.Generator().manual_seed(40)
    ours, others = (
        functional.normalize(torch.randn(images, *shape, 21, generator=generator).softmax(dim=3), dim=3) for shape in (dynamic, static)
    )
    cost = (1 - torch.einsum("napd,nbqd->nabpq", ours, others)).flatten(0, 2)
    return Forms({"pairs": partial(looped_sinkhorn, cost)}, partial(batched_sinkhorn, cost), greatest_difference, tolerance=1e-4)


HOT_SPOTS = [
    HotSpot(
        "sinkhorn-patches",
        "MuSCLe's regional contrast, 8 images of 14 x 14 cells: 288 pairs of patches, 50 iterations",
        "logarithmic domain, one pair after the other",
        "all pairs in one batch",
        target=5,
        best=20,
        agreement="greatest difference of distances and of plans",
        make=patches,
    ),
]
