"""Affinities of an image and of its mirrored image, compared pair by pair."""

from __future__ import annotations

from torch import Tensor

from wsss_core.nn.neighbours import offset_list


def greatest_gap(plain: Tensor, mirrored: Tensor, radius: int) -> float:
    """The greatest difference of the same pair of cells in float[K, H, W] of an image and of the image mirrored."""
    offsets, gap = offset_list(radius), 0.0
    height, width = plain.shape[1:]
    for k, (dy, dx) in enumerate(offsets):
        for y in range(height - dy):
            for x in range(max(0, -dx), width - max(0, dx)):
                # The ends (y, x) and (y + dy, x + dx) lie at W - 1 - x and W - 1 - x - dx; the pair is kept at its first end.
                place = (k, y, width - 1 - x - dx) if dy == 0 else (offsets.index((dy, -dx)), y, width - 1 - x)
                gap = max(gap, float((plain[k, y, x] - mirrored[place]).abs()))
    return gap
