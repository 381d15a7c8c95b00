"""Four tiles of an image: cut apart for the network, put together again behind it (Puzzle-CAM; Jo & Yu, ICIP 2021)."""

from __future__ import annotations

import torch
from torch import Tensor


def split(x: Tensor) -> Tensor:
    """Cut images into 2 x 2 tiles.

    Parameters
    ----------
    x
        [N, C, H, W], H and W even.

    Returns
    -------
    [4N, C, H/2, W/2], tile-major: first the top left tiles of all images, then the top right, bottom left and bottom right
    ones. `merge(split(x))` is `x`.

    Raises
    ------
    ValueError
        For another number of dimensions or an odd size.
    """
    if x.ndim != 4 or x.shape[-2] % 2 or x.shape[-1] % 2:
        raise ValueError(f"expected images [N, C, H, W] of even height and width, got shape {tuple(x.shape)}")
    return torch.cat([tile for half in x.chunk(2, dim=-2) for tile in half.chunk(2, dim=-1)])


def merge(tiles: Tensor) -> Tensor:
    """Put tiles together: [N, C, 2h, 2w] of [4N, C, h, w] in the order of `split`; raises ValueError for another number of tiles."""
    if tiles.ndim != 4 or len(tiles) % 4:
        raise ValueError(f"expected tiles [4N, C, h, w], got shape {tuple(tiles.shape)}")
    top_left, top_right, bottom_left, bottom_right = tiles.chunk(4)
    top, bottom = torch.cat([top_left, top_right], dim=-1), torch.cat([bottom_left, bottom_right], dim=-1)
    return torch.cat([top, bottom], dim=-2)
