"""Pairs of neighbouring cells on a grid: which there are, both ends of a pair as views, and the cells on the way between them.

AffinityNet, the boundary network and the random walk all speak of the pairs (p, p + offset_k) with the offsets of
`neighbour_offsets`; each unordered pair occurs once. A value per pair is a map [..., K, H, W], at the place of p; a pair
whose other end lies outside the grid does not exist, and its entry means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.data.images import IGNORE


def neighbour_offsets(radius: int) -> Tensor:
    """Return int64[K, 2], the offsets (dy, dx) of the neighbours within a radius, one of each two opposite ones.

    (0, 1), ..., (0, r-1), then for y = 1..r-1 all x = -(r-1)..r-1 with x^2 + y^2 < r^2: 34 for r = 5. Source: PSA (Ahn & Kwak,
    CVPR 2018), `search_dist` of its published code; IRN uses the same.
    """
    return torch.tensor(offset_list(radius), dtype=torch.int64).reshape(-1, 2)


@lru_cache
def offset_list(radius: int) -> tuple[tuple[int, int], ...]:
    """Return the same as Python integers; raises ValueError for a radius below 2, which has no neighbours."""
    if radius < 2:
        raise ValueError(f"radius must be at least 2, got {radius}")
    sides = range(-(radius - 1), radius)
    below = [(y, x) for y in range(1, radius) for x in sides if x * x + y * y < radius * radius]
    return (*((0, x) for x in range(1, radius)), *below)


def pair_views(values: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """Return two views [..., h, w] of values [..., H, W], at p and at p + (dy, dx), over all p for which both lie inside.

    dy >= 0. The views are empty if the grid is smaller than the offset.
    """
    height, width = values.shape[-2:]
    h, w = max(height - dy, 0), max(width - abs(dx), 0)
    left, right = max(-dx, 0), max(dx, 0)
    here = values[..., :h, left : left + w]
    there = values[..., dy : dy + h, right : right + w]
    return (here, there) if h and w else (here[..., :h, :w], here[..., :h, :w])


@lru_cache
def path_cells(dy: int, dx: int) -> tuple[tuple[int, int], ...]:
    """Return the offsets (y, x) of all cells on the way from (0, 0) to (dy, dx), both ends included.

    Those in the box of both ends whose distance from the straight line is less than one cell. Source: IRN (Ahn, Cho & Kwak,
    CVPR 2019), the lines between two cells as its published code draws them.
    """
    squared = dy * dy + dx * dx
    ys, xs = range(min(dy, 0), max(dy, 0) + 1), range(min(dx, 0), max(dx, 0) + 1)
    return tuple((y, x) for y in ys for x in xs if (dy * x - dx * y) ** 2 < squared)


@lru_cache
def path_runs(dy: int, dx: int) -> tuple[tuple[int, int, int], ...]:
    """Return the same cells as horizontal runs: (y, first x, number of cells)."""
    rows: dict[int, list[int]] = {}
    for y, x in path_cells(dy, dx):
        rows.setdefault(y, []).append(x)
    return tuple((y, min(xs), len(xs)) for y, xs in rows.items())


def largest_on_path(values: Tensor, radius: int, *, outside: float) -> Tensor:
    """Return [..., K, H, W], the largest value of [..., H, W] on the way of each pair, or `outside` if the pair leaves the grid.

    By maxima of shifted maps; those over horizontal runs of 1, ..., radius cells are made once and shared by the pairs. It writes
    in place, so call it without gradients; `losses.boundary.path_maximum` has them.
    """
    offsets = offset_list(radius)
    *batch, height, width = values.shape
    runs = [values]
    while len(runs) < min(radius, width):
        runs.append(torch.maximum(runs[-1][..., :-1], values[..., len(runs) :]))
    result = values.new_full((*batch, len(offsets), height, width), outside)
    for k, (dy, dx) in enumerate(offsets):
        here, _ = pair_views(result[..., k, :, :], dy, dx)
        h, w = here.shape[-2:]
        left = max(-dx, 0)
        if h and w:
            first, *others = (runs[length - 1][..., y : y + h, left + x : left + x + w] for y, x, length in path_runs(dy, dx))
            here.copy_(first)
            for run in others:
                torch.maximum(here, run, out=here)
    return result


def pairs_inside(offsets: Sequence[tuple[int, int]], height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return bool[len(offsets), H, W]: whether p + offset lies inside the grid. Offsets of any sign."""
    dy, dx = torch.tensor(offsets, device=device).T[..., None]
    y, x = torch.arange(height, device=device) + dy, torch.arange(width, device=device) + dx
    return ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]


def offsets_of_count(count: int) -> tuple[tuple[int, int], ...]:
    """Return the offsets of the radius that has that many; raises ValueError if none has."""
    radius = 2
    while len(offset_list(radius)) < count:
        radius += 1
    if len(offset_list(radius)) != count:
        raise ValueError(f"no radius has {count} neighbour offsets")
    return offset_list(radius)


def pair_labels(labels: Tensor | np.ndarray, radius: int) -> dict[str, Tensor]:
    """Sort the pairs (p, p + offset_k) of neighbouring pixels into positive and negative ones by their labels.

    Parameters
    ----------
    labels
        uint8[..., H, W]: 0 is background, 255 is ignored.
    radius
        Pairs are closer than this, in pixels of `labels`; the offsets are those of `neighbour_offsets`.

    Returns
    -------
    dict of bool[..., K, H, W] on the device of `labels`, at the place of p: ``bg`` both pixels are background, ``fg`` both are of
    the same class, ``neg`` they differ. No pair is in two of them; a pair with an ignored end, or with one end outside the
    image, is in none.

    Raises
    ------
    ValueError
        For labels that are not uint8 or have no height and width, or a radius below 2.

    Notes
    -----
    Source: PSA (Ahn & Kwak, CVPR 2018), Sec. 3.2; IRN (Ahn, Cho & Kwak, CVPR 2019), Sec. 4.1. Their published code takes p from the
    rows 0..H-radius and the columns radius-1..W-radius only, whose neighbours all lie inside; here every pair counts that
    lies inside, so that the borders and images smaller than the radius teach something too.
    """
    if isinstance(labels, np.ndarray):
        labels = torch.from_numpy(np.array(labels, order="C"))
    if labels.dtype != torch.uint8 or labels.ndim < 2:
        raise ValueError(f"expected labels uint8[..., H, W], got {labels.dtype} of shape {tuple(labels.shape)}")
    height, width = labels.shape[-2:]
    reach = radius - 1
    # Outside the image all is ignored, which leaves out the pairs that end there.
    padded = functional.pad(labels, (reach, reach, 0, reach), value=IGNORE)
    there = torch.stack([padded[..., y : y + height, reach + x : reach + x + width] for y, x in offset_list(radius)], dim=-3)
    here = labels.unsqueeze(-3)
    equal, known, background = here == there, here != IGNORE, here == 0
    return {
        "bg": equal & background,
        "fg": equal & (known & ~background),
        "neg": ~equal & known & (there != IGNORE),
    }


def grid(images: Tensor, stride: int) -> tuple[int, int]:
    """Return (ceil(H/stride), ceil(W/stride)): cells enough for every pixel, whatever the size."""
    height, width = images.shape[-2:]
    return -(-height // stride), -(-width // stride)


def resize(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [N, D, h, w] bilinearly, unless the size is right."""
    return features if features.shape[-2:] == size else functional.interpolate(features, size=size, mode="bilinear", align_corners=False)
