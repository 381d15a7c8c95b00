"""Optimal transport between sets of weighted vectors: the earth mover's distance, smoothed by entropy (Sinkhorn distances)."""

from __future__ import annotations

import torch
from torch import Tensor

from wsss_core.nn.precision import at_least_float32

_BLOCK = {False: 1 << 17, True: 1 << 24}  # entries worked on at a time, on a CPU and on a GPU
_LOG_OF_NOTHING = -1e30  # finite, so that differences of two are no NaN, and far below anything that is added to it


def sinkhorn(cost: Tensor, a: Tensor, b: Tensor, *, reg: float, iterations: int) -> tuple[Tensor, Tensor]:
    """Transport masses a to masses b at the lowest cost, less reg times the plan's entropy (Cuturi, NeurIPS 2013).

    Parameters
    ----------
    cost
        float[B, n, m], of moving a unit of mass.
    a, b
        float[B, n] and float[B, m], not negative, of the same sum in each problem. A mass may be 0: its row or column of the plan is 0.
    reg
        Weight of the entropy, in units of the cost, > 0. The smaller, the nearer to the earth mover's distance and the slower.
    iterations
        How often columns and rows are scaled, >= 1.

    Returns
    -------
    distance, plan
        float[B], the sum of plan * cost, and float[B, n, m] >= 0, whose rows sum to a; its columns sum to b as far as the iterations
        have converged. In float32, also for lower precision, or float64. Both have gradients with respect to cost, a and b (none for masses
        of 0), through all iterations.

    Raises
    ------
    ValueError
        If `reg` or `iterations` is not positive.

    Notes
    -----
    In the logarithmic domain, so that no kernel exp(-cost / reg) underflows. All problems of a batch run the same iterations: an early
    stop would have to wait for the slowest problem, and on a GPU to ask for it. They are solved in blocks that fit into a CPU's caches,
    or are enough to keep a GPU busy.
    """
    if reg <= 0 or iterations < 1:
        raise ValueError(f"expected reg > 0 and at least one iteration, got {reg} and {iterations}")
    cost = at_least_float32(cost)
    problems = max(1, _BLOCK[cost.is_cuda] // max(1, cost.shape[1] * cost.shape[2]))
    blocks = zip(*(values.split(problems) for values in (cost, _log(a), _log(b))), strict=True)
    plan = torch.cat([_plan(-block / reg, log_a, log_b, iterations) for block, log_a, log_b in blocks])
    return (plan * cost).sum(dim=(1, 2)), plan


def _plan(kernel: Tensor, log_a: Tensor, log_b: Tensor, iterations: int) -> Tensor:
    u, v = torch.zeros_like(log_a), torch.zeros_like(log_b)
    for _ in range(iterations):
        v = log_b - (kernel + u[:, :, None]).logsumexp(dim=1)
        u = log_a - (kernel + v[:, None, :]).logsumexp(dim=2)
    return (kernel + u[:, :, None] + v[:, None, :]).exp()


def _log(masses: Tensor) -> Tensor:
    masses, nothing = at_least_float32(masses), masses <= 0
    return masses.masked_fill(nothing, 1).log().masked_fill(nothing, _LOG_OF_NOTHING)
