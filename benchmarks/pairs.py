"""Pairs of neighbouring cells as published code has them: flat index tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def offsets(radius: int) -> list[tuple[int, int]]:
    """The (dy, dx) within a radius, one of each two opposite ones."""
    row = [(0, x) for x in range(1, radius)]
    return row + [(y, x) for y in range(1, radius) for x in range(1 - radius, radius) if x * x + y * y < radius * radius]


def flat_pairs(size: tuple[int, int], dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """Flat positions of p and of p + (dy, dx), for all p where both lie inside."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    inside = (rows + dy < size[0]) & (columns + dx >= 0) & (columns + dx < size[1])
    start = (rows * size[1] + columns)[inside]
    return start, start + dy * size[1] + dx


def inner_pairs(size: tuple[int, int], radius: int) -> tuple[Tensor, Tensor]:
    """Flat positions of p [P] and of p + offset [K, P], for the p all of whose neighbours lie inside: the published choice.

    p runs over rows 0..H-r and columns r-1..W-r.
    """
    rows = torch.arange(size[0] - radius + 1)[:, None] * size[1]
    start = (rows + torch.arange(radius - 1, size[1] - radius + 1)).reshape(-1)
    return start, torch.stack([start + dy * size[1] + dx for dy, dx in offsets(radius)])
