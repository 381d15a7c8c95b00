"""The random walk that spreads class scores over an image along the affinities of neighbouring cells (PSA, IRN).

The published code builds the dense transition matrix T of all N cells and squares it. Here T^t is never formed: a polynomial in
a sparse, symmetric relative of T is applied to the scores, with far fewer products than t.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.nn.neighbours import largest_on_path, neighbour_offsets, offset_list, offsets_of_count, pair_views, pairs_inside

__all__ = ["batches_of_similar_size", "boundary_affinity", "neighbour_offsets", "walk", "walk_affinity", "walk_boundary"]

TOLERANCE = 1e-5
"""Largest error of the polynomial that stands for z^t, on [-1, 1]; float32 rounding in the walk is about as large."""

_MOST_PADDING = 1 / 8

Offsets = tuple[tuple[int, int], ...]


def walk_affinity(scores: Tensor | np.ndarray, affinity: Tensor | np.ndarray, *, radius: int, beta: float, steps: int) -> Tensor:
    """Walk scores along affinities (PSA; Ahn & Kwak, CVPR 2018).

    With A[p, q] = a_pq^beta for neighbours, A[p, p] = 1 and 0 elsewhere, T = A D^-1 with D = diag(sum_p A[p, q]), the result
    is y = x T^t, x the scores as row vectors. So a step replaces each score by the mean over the cell's neighbours, weighted by
    A: constant scores stay, each class keeps within the range of its scores, and sum_p D[p] x[p] is preserved (not sum_p x[p]).

    Parameters
    ----------
    scores
        float[C, H, W], finite; PSA has background among the channels.
    affinity
        float[K, H, W]: affinity[k, p] in [0, 1] belongs to the pair (p, p + offset_k), offsets as `neighbour_offsets` has
        them. Entries of pairs that leave the image are ignored.
    radius
        Radius of the neighbourhood, which gives K; PSA uses 5.
    beta
        Exponent of the affinities, > 0; PSA uses 8.
    steps
        Steps t >= 0; PSA uses 2^8.

    Returns
    -------
    float32[C, H, W] on the device of `scores`.

    Raises
    ------
    ValueError
        For shapes that do not fit each other or the radius, affinities outside [0, 1] or NaN, beta <= 0, steps < 0.
    """
    scores, affinity = _map(scores, "scores", "C"), _map(affinity, "affinity", "K")
    offsets = offset_list(radius)
    if len(affinity) != len(offsets) or affinity.shape[1:] != scores.shape[1:]:
        expected = [len(offsets), *scores.shape[1:]]
        raise ValueError(f"expected affinity of shape {expected} for radius {radius}, got {list(affinity.shape)}")
    return _walk_powered(scores, affinity, offsets, beta, steps)


def walk_boundary(
    scores: Tensor | np.ndarray, boundary: Tensor | np.ndarray, *, radius: int = 5, beta: float = 10, steps: int = 256
) -> Tensor:
    """Walk scores that a boundary map holds back (IRN; Ahn, Cho & Kwak, CVPR 2019).

    The affinities are those of `boundary_affinity`, and scores * (1 - boundary) walk, as in `walk_affinity`. The published
    code pads the image with boundary 1; those cells have affinity 0 to all others, so none are needed here.

    Parameters
    ----------
    scores
        float[C, H, W], finite.
    boundary
        float[H, W] in [0, 1], the probability that a cell lies on a class boundary.
    radius, beta, steps
        As for `walk_affinity`; the defaults are IRN's.

    Returns
    -------
    float32[C, H, W] on the device of `scores`.

    Raises
    ------
    ValueError
        For shapes that do not fit, boundaries outside [0, 1] or NaN, a radius < 2, beta <= 0, steps < 0.
    """
    scores, boundary = _map(scores, "scores", "C"), torch.as_tensor(boundary)
    if boundary.shape != scores.shape[1:]:
        raise ValueError(f"expected a boundary map of shape {list(scores.shape[1:])}, got {list(boundary.shape)}")
    boundary = boundary.float()
    return _walk_powered(scores * (1 - boundary), boundary_affinity(boundary, radius), offset_list(radius), beta, steps)


@torch.no_grad()
def boundary_affinity(boundary: Tensor | np.ndarray, radius: int) -> Tensor:
    """Turn a boundary map into affinities of neighbours: 1 - the maximum on the way (IRN; Ahn, Cho & Kwak, CVPR 2019).

    Takes float[..., H, W] in [0, 1]; returns float[..., K, H, W] in [0, 1], K in the order of `neighbour_offsets`, 0 for pairs
    that leave the image. Without gradients. Raises ValueError for fewer than two axes, other dtypes, or a radius below 2.
    """
    boundary = torch.as_tensor(boundary)
    if boundary.ndim < 2 or not boundary.is_floating_point():
        raise ValueError(f"expected a boundary map float[..., H, W], got {boundary.dtype} of shape {list(boundary.shape)}")
    return largest_on_path(boundary, radius, outside=1).neg_().add_(1)


@torch.no_grad()
def walk(scores: Tensor, weights: Tensor, steps: int, *, degree: int | None = None, tolerance: float = TOLERANCE) -> Tensor:
    """Walk the scores of a batch of images; what `walk_affinity` does, from weights that are powers already.

    T = A D^-1 = D^1/2 S D^-1/2 with S = D^-1/2 A D^-1/2 symmetric, its eigenvalues in [-1, 1]. So x T^t = (x D^1/2) S^t D^-1/2.
    On [-1, 1], z^t is the sum of c_n T_n(z) over n <= t of the parity of t, T_n the Chebyshev polynomials, and the
    c_n = 2^(1-t) binomial(t, (t-n)/2), half of it for n = 0, fall like a Gaussian of width sqrt(t): cut at a degree of some
    4.5 sqrt(t), the sum needs that many products with S instead of t. The c_n are divided by their sum, so that eigenvalue 1
    stays 1. D is computed in float64, the walk in float32.

    S is a CSR matrix of up to 2K + 1 entries a row. Shifted weight maps (a stencil) need no indices, but 2K operations a product:
    about as fast on one thread, 1.2 to 2 times slower on two. Most memory, while S is built: some 30 bytes an entry.

    Parameters
    ----------
    scores
        float[N, C, H, W], finite.
    weights
        float[N, K, H, W] >= 0 on the same device, affinity^beta of the pair (p, p + offset_k); the radius follows from K.
        Entries of pairs that leave the grid are ignored. In an image smaller than the grid, pairs that leave the image must
        be 0: its result is then that of the image alone, and zero scores around it stay zero.
    steps
        Steps t >= 0.
    degree
        Degree at which to cut the sum, >= 1; None takes the smallest for the tolerance. From t on, the sum is complete.
    tolerance
        Largest |p(z) - z^t| on [-1, 1] of the polynomial p that None takes; relative to the scores, their error is about that.

    Returns
    -------
    float32[N, C, H, W].

    Raises
    ------
    ValueError
        For shapes that do not fit, a K that belongs to no radius, steps < 0, degree < 1, or a tolerance not in (0, 1).
    """
    if scores.ndim != 4 or weights.ndim != 4 or weights.shape[0] != scores.shape[0] or weights.shape[2:] != scores.shape[2:]:
        raise ValueError(f"expected scores [N, C, H, W] and weights [N, K, H, W], got {list(scores.shape)} and {list(weights.shape)}")
    offsets = offsets_of_count(weights.shape[1])
    coefficients = _coefficients(steps, degree, tolerance)
    scores = scores.float()
    if steps == 0 or not scores.numel():
        return scores.clone()
    operator, root = _symmetric_operator(weights, offsets)
    start = (scores * root[:, None]).permute(0, 2, 3, 1)
    walked = _polynomial(operator, start.reshape(-1, scores.shape[1]).contiguous(), coefficients)
    walked = walked.reshape(start.shape).permute(0, 3, 1, 2).contiguous().div_(root[:, None])
    # As means they lie in this range; the polynomial and rounding may have left it by the tolerance.
    return torch.clamp(walked, scores.amin(dim=(2, 3), keepdim=True), scores.amax(dim=(2, 3), keepdim=True))


def batches_of_similar_size(sizes: Sequence[tuple[int, int]], most_cells: int, most: int) -> list[list[int]]:
    """Group images of sizes (H, W) for `walk`, so that little of a batch is padding.

    The images are taken by size, (H, W) ascending, equal ones by position. An image joins the current batch if, padded to the
    largest height and width in it, the batch holds at most `most` images and `most_cells` cells, of which at most an eighth
    are padding; else it opens the next. An image of more than `most_cells` cells is alone. Returns lists of positions in
    `sizes`; each position occurs once.
    """
    batches: list[list[int]] = []
    height = width = cells = 0
    for position in sorted(range(len(sizes)), key=lambda i: (*sizes[i], i)):
        h, w = sizes[position]
        padded = max(height, h) * max(width, w) * (len(batches[-1]) + 1) if batches else 0
        fits = padded <= most_cells and padded - (cells + h * w) <= _MOST_PADDING * padded
        if batches and len(batches[-1]) < most and fits:
            batches[-1].append(position)
            height, width, cells = max(height, h), max(width, w), cells + h * w
        else:
            batches.append([position])
            height, width, cells = h, w, h * w
    return batches


@torch.no_grad()
def _walk_powered(scores: Tensor, affinity: Tensor, offsets: Offsets, beta: float, steps: int) -> Tensor:
    """Walk one image; affinity [K, H, W] whose entries for pairs that leave the image may be anything."""
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    height, width = affinity.shape[1:]
    affinity = torch.where(pairs_inside(offsets, height, width, affinity.device), affinity.float(), 0)
    # Written so that NaN fails it.
    if not bool(((affinity >= 0) & (affinity <= 1)).all()):
        raise ValueError("expected affinities or a boundary map in [0, 1], got values outside or NaN")
    return walk(scores[None], affinity.pow_(beta)[None], steps)[0]


def _map(values: Tensor | np.ndarray, name: str, first: str) -> Tensor:
    values = torch.as_tensor(values)
    if values.ndim != 3:
        raise ValueError(f"expected {name} [{first}, H, W], got shape {list(values.shape)}")
    return values.float()


def _symmetric_operator(weights: Tensor, offsets: Offsets) -> tuple[Tensor, Tensor]:
    """Return S as a CSR matrix over the N * H * W cells, and the diagonal of D^1/2 as float32[N, H, W]."""
    n, count, height, width = weights.shape
    device = weights.device
    degree = torch.ones((n, height, width), dtype=torch.float64, device=device)
    for k, offset in enumerate(offsets):
        pair, _ = pair_views(weights[:, k], *offset)
        for end in pair_views(degree, *offset):
            end += pair
    inverse_root = degree.rsqrt()
    # Entries of a row in the order of their columns: the neighbours before the cell, itself, the neighbours after it.
    entries = torch.zeros((n, 2 * count + 1, height, width), device=device)
    torch.reciprocal(degree, out=entries[:, count])
    for k, offset in enumerate(offsets):
        here, there = pair_views(inverse_root, *offset)
        entry = (here * there).mul_(pair_views(weights[:, k], *offset)[0])
        pair_views(entries[:, count + 1 + k], *offset)[0].copy_(entry)
        pair_views(entries[:, count - 1 - k], *offset)[1].copy_(entry)
    rows, columns, places = _sparsity(offsets, height, width, device)
    values = torch.cat([image.T.reshape(-1).index_select(0, places) for image in entries.flatten(2)])
    # 32-bit indices make the fastest products; they count 2^31 entries, 31 million cells for radius 5.
    image = torch.arange(n, dtype=torch.int32, device=device)[:, None]
    ends = (rows[1:] + image * len(columns)).flatten()
    columns = (columns + image * (height * width)).flatten()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        matrix = torch.sparse_csr_tensor(torch.cat([rows[:1], ends]), columns, values, (len(ends), len(ends)), check_invariants=False)
    return matrix, degree.sqrt().float()


@lru_cache(maxsize=1)
def _sparsity(offsets: Offsets, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return row pointers and columns of S for one image, and the places of its entries in the entries [H, W, 2K + 1] of all rows.

    Kept for the next call: images of one size tend to follow each other. 8 bytes per entry.
    """
    signed = [(-dy, -dx) for dy, dx in reversed(offsets)] + [(0, 0), *offsets]
    exists = pairs_inside(signed, height, width, device).flatten(1).T.contiguous()
    shift = torch.tensor([dy * width + dx for dy, dx in signed], dtype=torch.int32, device=device)
    cell = torch.arange(height * width, dtype=torch.int32, device=device)
    places = exists.flatten().nonzero().squeeze(1).int()
    columns = (cell[:, None] + shift).flatten().index_select(0, places)
    ends = exists.sum(dim=1, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return torch.cat([ends.new_zeros(1), ends]), columns, places


@lru_cache
def _coefficients(steps: int, degree: int | None, tolerance: float) -> tuple[float, ...]:
    """Return the Chebyshev coefficients 0..degree of a polynomial for z^steps that is 1 at z = 1."""
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    if degree is not None and degree < 1:
        raise ValueError(f"degree must be at least 1, got {degree}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance}")
    # Relative to the first one, which need not be known: c_(n+2) / c_n = (t - n) / (t + n + 2).
    series, n, term = {}, steps % 2, 1.0
    while n <= steps and term > 1e-20:
        series[n] = term / 2 if n == 0 else term
        term *= (steps - n) / (steps + n + 2)
        n += 2
    total = math.fsum(series.values())
    if degree is None:
        # Dividing by the sum moves p by as much again as the part cut off.
        descending = sorted(series, reverse=True)
        degree = descending[bisect_right(list(accumulate(series[n] / total for n in descending)), tolerance / 2)]
    kept = [series.get(n, 0.0) for n in range(max(min(degree, steps), 1) + 1)]
    return tuple(c / math.fsum(kept) for c in kept)


def _polynomial(operator: Tensor, start: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return sum_n c_n T_n(S) x for x = start [cells, C], by T_(n+1) = 2 S T_n - T_(n-1)."""
    channels = start.shape[1]
    # MKL's product takes a vector in half the time of a matrix, and 4 columns in less time than 3.
    before = start[:, 0].clone() if channels == 1 else functional.pad(start, (0, -channels % 4))
    now = operator @ before
    total = (before * coefficients[0]).add_(now, alpha=coefficients[1])
    for c in coefficients[2:]:
        if channels == 1:
            before.addmv_(operator, now, beta=-1, alpha=2)
        else:
            before.addmm_(operator, now, beta=-1, alpha=2)
        before, now = now, before
        if c:
            total.add_(now, alpha=c)
    return total.view(len(start), -1)[:, :channels]
