"""Losses of the boundary network: class boundaries and displacement fields learned from labels of pairs (IRN: Ahn, Cho & Kwak, CVPR 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wsss_core.losses.affinity import EPSILON, affinity_terms
from wsss_core.nn.neighbours import offset_list, pair_labels, pair_views, pairs_inside, path_cells
from wsss_core.nn.precision import at_least_float32


def boundary_losses(edge_logits: Tensor, displacement: Tensor | None, labels: Tensor, radius: int) -> dict[str, Tensor]:
    """The four loss terms of IRN, of which it minimises (pos + neg) / 2 + (displacement_fg + displacement_bg) / 2.

    Parameters
    ----------
    edge_logits
        float[N, 1, H, W]; their sigmoid is the probability B of a class boundary.
    displacement
        float[N, 2, H, W], the field D in cells: (dy, dx) from a cell to the centroid of its instance. None: its two terms are left out.
    labels
        uint8[N, H, W] on the same grid: 0 is background, 255 is ignored.
    radius
        Pairs (i, j) are closer than this, in cells (IRN: 10).

    Returns
    -------
    dict of scalars >= 0. With the affinity a_ij = 1 - max of B on the way from i to j and d_ij = j - i:
    ``pos`` mean -log a over background pairs and over foreground pairs, half each, and ``neg`` mean -log (1 - a) over pairs of
    different labels; ``displacement_fg`` mean |D_i - D_j - d_ij| over foreground pairs and both directions;
    ``displacement_bg`` mean |D_i - D_j| over background pairs. A term without pairs is 0, with a gradient of 0.

    Raises
    ------
    ValueError
        For shapes that do not fit, labels that are not uint8, or a radius below 2.

    Notes
    -----
    All pairs inside the image count, at any size. The published code leaves out the cells i near the left, right and lower
    border, see `pair_labels`; with its pairs `boundary_losses_of_pairs` gives its values.
    """
    count, _, height, width = edge_logits.shape
    shapes = {"edge logits": (edge_logits, (count, 1, height, width)), "labels": (labels, (count, height, width))}
    for name, (value, shape) in {**shapes, "displacement": (displacement, (count, 2, height, width))}.items():
        if value is not None and value.shape != shape:
            raise ValueError(f"expected {name} of shape {shape}, got {tuple(value.shape)}")
    return boundary_losses_of_pairs(edge_logits, displacement, pair_labels(labels, radius), radius)


def boundary_losses_of_pairs(
    edge_logits: Tensor, displacement: Tensor | None, pairs: Mapping[str, Tensor], radius: int
) -> dict[str, Tensor]:
    """The same for given pairs, bool[N, K, H, W] as from `pair_labels`; pairs that leave the image must be False."""
    boundary = at_least_float32(edge_logits).sigmoid().squeeze(1)
    terms = affinity_terms(1 - path_maximum(boundary, radius), pairs)
    losses = {"pos": (terms["bg"] + terms["fg"]) / 2, "neg": terms["neg"]}
    if displacement is None:
        return losses
    foreground, background = _DisplacementSums.apply(at_least_float32(displacement), pairs["fg"], pairs["bg"], radius)
    return {
        **losses,
        "displacement_fg": foreground / (2 * pairs["fg"].sum(dtype=foreground.dtype) + EPSILON),
        "displacement_bg": background / (2 * pairs["bg"].sum(dtype=background.dtype) + EPSILON),
    }


def path_maximum(boundary: Tensor, radius: int) -> Tensor:
    """Largest value on the way from p to p + offset_k, both ends included, with a gradient; the way is that of `path_cells`.

    Parameters
    ----------
    boundary
        float[N, H, W].
    radius
        As for `neighbour_offsets`.

    Returns
    -------
    float[N, K, H, W], at the place of p; 0 for pairs that leave the image. Of several cells with the largest value the first
    gets the gradient.

    Notes
    -----
    One shifted maximum per cell of the way; the backward pass finds the largest cell again by comparison. So it keeps the map
    and the result only, where the published form (all cells gathered by index) copies every map once per cell of every way.
    """
    return _PathMaximum.apply(boundary, radius)


class _PathMaximum(torch.autograd.Function):
    """`path_maximum` on flat grids: a cell of the way is a shift by y * W + x, whose long rows are fast, whatever the width.

    Shifts wrap around at the sides; these are ways that leave the grid, whose values and gradients are set to 0.
    """

    @staticmethod
    def forward(ctx: Any, boundary: Tensor, radius: int) -> Tensor:
        count, height, width = boundary.shape
        flat = boundary.flatten(1)
        maximum = boundary.new_zeros((count, len(offset_list(radius)), height * width))
        for k, (start, stop), shifts in _ways(height, width, radius):
            largest = maximum[:, k, start:stop]
            largest.copy_(flat[:, start:stop])
            for shift in shifts:
                torch.maximum(largest, flat[:, start + shift : stop + shift], out=largest)
        maximum = maximum.unflatten(2, (height, width))
        maximum.masked_fill_(~pairs_inside(offset_list(radius), height, width, boundary.device), 0)
        ctx.save_for_backward(boundary, maximum)
        ctx.radius = radius
        return maximum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        boundary, maximum = ctx.saved_tensors
        _, height, width = boundary.shape
        flat, maximum = boundary.flatten(1), maximum.flatten(2)
        upstream = upstream.masked_fill(~pairs_inside(offset_list(ctx.radius), height, width, boundary.device), 0).flatten(2)
        gradient = torch.zeros_like(flat)
        for k, (start, stop), shifts in _ways(height, width, ctx.radius):
            remaining = upstream[:, k, start:stop]
            for shift in shifts:
                cell = slice(start + shift, stop + shift)
                share = remaining * (flat[:, cell] == maximum[:, k, start:stop])
                gradient[:, cell] += share
                remaining -= share
        return gradient.view_as(boundary), None


class _DisplacementSums(torch.autograd.Function):
    """Sums of |D_i - D_j - d_ij| over foreground pairs and of |D_i - D_j| over background pairs, and of both directions.

    Both gradients are sums of signs that need no value from upstream: the forward pass makes them beside the sums, one offset
    after the other, and nothing of the size of all pairs is kept.
    """

    @staticmethod
    def forward(ctx: Any, displacement: Tensor, foreground: Tensor, background: Tensor, radius: int) -> tuple[Tensor, Tensor]:
        sums = displacement.new_zeros(2)
        slopes = displacement.new_zeros((2, *displacement.shape))
        targets = displacement.new_tensor(offset_list(radius))[:, :, None, None]
        for k, (dy, dx) in enumerate(offset_list(radius)):
            here, there = pair_views(displacement, dy, dx)
            difference = here - there
            kinds = ((foreground, difference - targets[k]), (background, difference))
            for total, slope, (pairs, residual) in zip(sums, slopes, kinds, strict=True):
                residual *= pair_views(pairs[:, k : k + 1], dy, dx)[0]
                total += residual.abs().sum()
                slope_here, slope_there = pair_views(slope, dy, dx)
                slope_here += residual.sign_()
                slope_there -= residual
        ctx.save_for_backward(slopes)
        return sums[0].clone(), sums[1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_fg: Tensor, upstream_bg: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return upstream_fg * slopes[0] + upstream_bg * slopes[1], None, None, None


def _ways(height: int, width: int, radius: int) -> list[tuple[int, tuple[int, int], list[int]]]:
    """Return (k, (start, stop), shifts): the range of flat p that holds all ways of offset k inside the grid, and their cells."""
    ways = []
    for k, (dy, dx) in enumerate(offset_list(radius)):
        if dy < height and abs(dx) < width:
            shifts = [y * width + x for y, x in path_cells(dy, dx)]
            ways.append((k, (-min(shifts), height * width - max(shifts)), shifts))
    return ways
