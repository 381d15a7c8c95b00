"""AffinityNet's pair affinities of features and the loss that trains them (PSA: Ahn & Kwak, CVPR 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsss_core.nn.neighbours import offset_list, pairs_inside
from wsss_core.nn.precision import at_least_float32

EPSILON = 1e-5
"""PSA's and IRN's published code adds it to affinities before the logarithm and to counts of pairs before the division."""
_BLOCK = 1 << 21  # elements worked on at a time: small enough for caches, large enough that a GPU's kernel launches do not count


def pair_affinity(features: Tensor, radius: int) -> Tensor:
    """Affinity of neighbouring cells, a_ij = exp(-mean over channels |f_i - f_j|) (PSA, Eq. 3; the mean as in its published code).

    Parameters
    ----------
    features
        float[N, D, H, W].
    radius
        Pairs (p, p + offset_k) are closer than this, in cells; offsets as `neighbour_offsets`.

    Returns
    -------
    float[N, K, H, W] in [0, 1], at the place of p; 0 for pairs that leave the grid. float32 also for features of lower
    precision and under autocast.

    Notes
    -----
    One offset after the other, on shifted views of the features; the backward pass computes the signs again. So the
    memory beyond features, result and gradient is one block of 2^21 elements (or one image), not K times the features. Twice
    differentiable it is not. Where two channels are equal the derivative is 0, as that of `abs`.
    """
    return _PairAffinity.apply(features, radius)


def affinity_terms(affinity: Tensor, pairs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mean of -log(a) over background pairs (``bg``) and foreground pairs (``fg``), of -log(1 - a) over negative ones (``neg``).

    Parameters
    ----------
    affinity
        float[..., K, H, W] in [0, 1]; may be anything at pairs that are of no kind.
    pairs
        bool[..., K, H, W] under the same names, as from `pair_labels`: no pair is of two kinds.

    Returns
    -------
    dict of scalars >= 0, each a mean over the whole batch; 0, with a gradient of 0, for a kind without pairs.

    Notes
    -----
    The logarithms are of a + 1e-5 and 1 + 1e-5 - a and the counts have 1e-5 added, as in PSA's and IRN's published code.
    """
    affinity = at_least_float32(affinity)
    positive = pairs["bg"] | pairs["fg"]
    # One logarithm for all kinds, of 1 at other pairs, so that whatever stands there reaches neither the sums nor the gradient.
    agreement = torch.where(pairs["neg"], 1 + EPSILON - affinity, torch.where(positive, affinity + EPSILON, 1.0))
    penalty = -agreement.log()
    return {kind: (penalty * pairs[kind]).sum() / (pairs[kind].sum(dtype=penalty.dtype) + EPSILON) for kind in ("bg", "fg", "neg")}


def affinity_loss(affinity: Tensor, pairs: Mapping[str, Tensor]) -> Tensor:
    """AffinityNet's loss, bg / 4 + fg / 4 + neg / 2 of `affinity_terms` (PSA, Eqs. 5-8; the two positive kinds equally as in its code)."""
    terms = affinity_terms(affinity, pairs)
    return terms["bg"] / 4 + terms["fg"] / 4 + terms["neg"] / 2


class _PairAffinity(torch.autograd.Function):
    """`pair_affinity`. Grids are flat: p + offset is a shift by dy * W + dx, whose long rows are fast, whatever the width.

    Shifts wrap around at the sides; these are pairs that leave the grid, which are set to 0 at the end and so have no gradient.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, radius: int) -> Tensor:
        count, channels, height, width = features.shape
        shifts, area = _shifts(height, width, radius), height * width
        dtype = torch.promote_types(features.dtype, torch.float32)
        affinity = features.new_zeros((count, len(offset_list(radius)), area), dtype=dtype)
        buffer = features.new_empty(min(count, _images(features)) * channels * area, dtype=dtype)
        for start in range(0, count, _images(features)):
            block = slice(start, start + _images(features))
            values = features[block].to(dtype).reshape(-1, channels, area)
            for k, shift in shifts:
                difference = _difference(values, shift, buffer)
                affinity[block, k, : area - shift] = difference.abs_().sum(dim=1)
        affinity = affinity.unflatten(2, (height, width)).mul_(-1 / max(channels, 1)).exp_()
        affinity.masked_fill_(~pairs_inside(offset_list(radius), height, width, features.device), 0)
        ctx.save_for_backward(features, affinity)
        ctx.radius = radius
        return affinity

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        features, affinity = ctx.saved_tensors
        count, channels, height, width = features.shape
        shifts, area = _shifts(height, width, ctx.radius), height * width
        # d a / d f_i = -a / D sign(f_i - f_j), and the opposite for f_j.
        weight = (upstream * affinity).mul_(-1 / max(channels, 1)).flatten(2)
        gradient = torch.empty_like(features)
        buffer = weight.new_empty(min(count, _images(features)) * channels * area)
        for start in range(0, count, _images(features)):
            block = slice(start, start + _images(features))
            values = features[block].to(weight.dtype).reshape(-1, channels, area)
            total = torch.zeros_like(values)
            for k, shift in shifts:
                slope = _difference(values, shift, buffer).sign_().mul_(weight[block, k, None, : area - shift])
                total[..., : area - shift] += slope
                total[..., shift:] -= slope
            gradient[block] = total.view(-1, channels, height, width)
        return gradient, None


def _shifts(height: int, width: int, radius: int) -> list[tuple[int, int]]:
    """Return (k, shift) for all offsets that fit into the grid; 0 < shift < H * W."""
    return [(k, dy * width + dx) for k, (dy, dx) in enumerate(offset_list(radius)) if dy < height and abs(dx) < width]


def _images(features: Tensor) -> int:
    return max(1, _BLOCK // max(1, features[0].numel())) if len(features) else 1


def _difference(values: Tensor, shift: int, buffer: Tensor) -> Tensor:
    """Return f_i - f_j [n, D, M - shift] in `buffer`: fresh memory for every offset costs more than the subtraction."""
    here, there = values[..., :-shift], values[..., shift:]
    return torch.sub(here, there, out=buffer[: here.numel()].view(here.shape))
