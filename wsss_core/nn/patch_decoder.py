"""A decoder over several blocks of a plain vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class PatchDecoder(nn.Module):
    """Merge the patch embeddings of several blocks by a small network for each patch (APC, Sec. 3.2: "a simple MLP layer").

    As in SegFormer (Xie et al. 2021) each level is projected to one width, all are joined and mapped to that width, then to the
    classes. (The paper does not say which blocks, nor the width. Without SegFormer's batch normalisation, so that a batch of one image will do;
    the embeddings of inner blocks, which the transformer leaves unnormalised, are normalised instead.)

    Parameters
    ----------
    channels
        Of every block's embeddings, all the same D.
    num_classes, width
        C; size of the hidden embeddings.
    levels
        Number of blocks, evenly spaced, the last among them; all, if there are not so many.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, width: int, levels: int) -> None:
        super().__init__()
        blocks = len(channels)
        levels = min(levels, blocks)
        self.blocks = [blocks * (i + 1) // levels - 1 for i in range(levels)]
        self.project = nn.ModuleList(nn.Sequential(LayerNorm2d(channels[i]), nn.Conv2d(channels[i], width, 1)) for i in self.blocks)
        self.fuse = nn.Sequential(nn.Conv2d(width * levels, width, 1), nn.ReLU(inplace=True), nn.Conv2d(width, num_classes, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return logits [N, C, h, w] of the embeddings [N, D, h, w] of all blocks."""
        chosen = (levels[i] for i in self.blocks)
        return self.fuse(torch.cat([project(level) for project, level in zip(self.project, chosen, strict=True)], dim=1))
