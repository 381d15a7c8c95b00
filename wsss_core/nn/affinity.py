"""AffinityNet (Ahn & Kwak, CVPR 2018): features whose distance says whether two cells belong to the same class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.config import Affinity
from wsss_core.errors import UserError
from wsss_core.nn.backbones import Features
from wsss_core.nn.neighbours import grid, resize

STRIDE = 8
"""Pixels of the image per cell of the features and of the walk."""
WIDTHS = (64, 128, 256)
"""Channels to which the three deepest levels are reduced, from fine to coarse."""


class AffinityNet(nn.Module):
    """Backbone and the layers that make pair features of its three deepest levels (PSA, Fig. 4)."""

    def __init__(self, config: Affinity) -> None:
        super().__init__()
        self.features = Features(config, frozen=config.freeze_backbone)
        if len(self.features.channels) < len(WIDTHS):
            raise UserError(
                f"backbone: AffinityNet needs {len(WIDTHS)} feature levels, {config.backbone} has {len(self.features.channels)}"
            )
        deepest = self.features.channels[-len(WIDTHS) :]
        reduce = [nn.Conv2d(channels, width, 1, bias=False) for channels, width in zip(deepest, WIDTHS, strict=True)]
        for layer in reduce:
            nn.init.kaiming_normal_(layer.weight)
        self.reduce = nn.ModuleList(reduce)
        self.mix = nn.Conv2d(sum(WIDTHS), sum(WIDTHS), 1, bias=False)
        nn.init.xavier_uniform_(self.mix.weight, gain=4)  # as in PSA's published code: the distances start well apart from 0

    def forward(self, images: Tensor) -> Tensor:
        """Return pair features [N, 448, ceil(H/8), ceil(W/8)] of images [N, 3, H, W] of any size.

        Levels of another stride are resized to that grid (ours; PSA's backbone has stride 8 at all three).
        """
        _, levels = self.features(images)
        size = grid(images, STRIDE)
        reduced = [functional.elu(layer(level)) for layer, level in zip(self.reduce, levels[-len(WIDTHS) :], strict=True)]
        return functional.elu(self.mix(torch.cat([resize(part, size) for part in reduced], dim=1)))
