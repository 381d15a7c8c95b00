"""The network of IRN (Ahn, Cho & Kwak, CVPR 2019): class boundaries, and displacements to the centres of instances."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wsss_core.config import Boundary
from wsss_core.nn.backbones import Features
from wsss_core.nn.neighbours import grid, resize

STRIDE = 4
"""Pixels of the image per cell of the boundary map and of the walk."""
LEVELS = 5
"""Most levels of the backbone that are used, counted from the deepest; fewer if it has fewer."""


class BoundaryNet(nn.Module):
    """Backbone, boundary head and (unless switched off) displacement head.

    The widths are those of IRN's published ResNet-50; the levels are those that the backbone has.
    """

    def __init__(self, config: Boundary) -> None:
        super().__init__()
        self.features = Features(config, frozen=config.freeze_backbone)
        channels, strides = self.features.channels[-LEVELS:], self.features.strides[-LEVELS:]
        self.edge_levels = nn.ModuleList(_reduce(c, 32, 4) for c in channels)
        self.edge = nn.Conv2d(32 * len(channels), 1, 1)
        self.displacement = DisplacementHead(channels, strides) if config.displacement else None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return boundary logits [N, 1, h, w] and displacements [N, 2, h, w] (dy, dx, in cells; None without that head).

        h = ceil(H/4), w = ceil(W/4) for images [N, 3, H, W] of any size: every level is resized to that grid. (The published code
        crops the levels to the smallest one instead, and boundary maps to 512 x 512 pixels.)
        """
        _, levels = self.features(images)
        levels = levels[-LEVELS:]
        size = grid(images, STRIDE)
        edges = [resize(reduce(level), size) for reduce, level in zip(self.edge_levels, levels, strict=True)]
        logits = self.edge(torch.cat(edges, dim=1))
        return logits, None if self.displacement is None else self.displacement(levels, size)


class DisplacementHead(nn.Module):
    """Displacement field from fine levels (stride up to 4) and coarse ones, which are joined first (IRN, Section 4.1)."""

    def __init__(self, channels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.fine_levels = sum(stride <= STRIDE for stride in strides)
        fine = [_reduce(c, 64 if i == 0 else 128, 8 if i == 0 else 16) for i, c in enumerate(channels[: self.fine_levels])]
        coarse = [_reduce(c, 256, 16) for c in channels[self.fine_levels :]]
        self.levels = nn.ModuleList([*fine, *coarse])
        self.join_coarse = _reduce(256 * len(coarse), 256, 16) if coarse else None
        width = sum(64 if i == 0 else 128 for i in range(self.fine_levels)) + (256 if coarse else 0)
        self.join = _reduce(width, 256, 16)
        self.displace = nn.Conv2d(256, 2, 1, bias=False)
        self.mean_shift = MeanShift(2)

    def forward(self, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Return displacements [N, 2, h, w] on a grid of `size`."""
        reduced = [reduce(level) for reduce, level in zip(self.levels, levels, strict=True)]
        parts = [resize(part, size) for part in reduced[: self.fine_levels]]
        if self.join_coarse is not None:
            finest = reduced[self.fine_levels].shape[-2:]
            coarse = [resize(part, (finest[0], finest[1])) for part in reduced[self.fine_levels :]]
            parts.append(resize(self.join_coarse(torch.cat(coarse, dim=1)), size))
        return self.mean_shift(self.displace(self.join(torch.cat(parts, dim=1))))


class MeanShift(nn.Module):
    """Subtracts in evaluation what the displacements were on average over the training set: a constant that no pair loss sees."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(channels))

    def forward(self, values: Tensor) -> Tensor:
        """Return [N, C, h, w], in training as it is."""
        return values if self.training else values - self.mean[:, None, None]


def _reduce(channels: int, width: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width), nn.ReLU(inplace=True))
