"""Tiles: their order, the way there and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_core.nn.tiles import merge, split

GOLDEN = Path(__file__).parents[3] / "shared/golden/puzzle_tile_merge.npz"


def test_tiles_are_ordered_tile_by_tile_and_row_by_row() -> None:
    x = torch.arange(2 * 4 * 6.0).view(2, 1, 4, 6)
    tiles = split(x)
    corners = [(0, 0), (0, 3), (2, 0), (2, 3)]
    for tile, (top, left) in enumerate(corners):
        for image in range(2):
            assert torch.equal(tiles[tile * 2 + image], x[image, :, top : top + 2, left : left + 3])


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 5, 8, 14), (2, 3, 2, 10)])
def test_there_and_back(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    assert torch.equal(merge(split(x)), x)


def test_what_cannot_be_cut_or_merged_is_an_error() -> None:
    for wrong in (torch.rand(1, 3, 5, 4), torch.rand(1, 3, 4, 5), torch.rand(3, 4, 4)):
        with pytest.raises(ValueError, match="even height and width"):
            split(wrong)
    with pytest.raises(ValueError, match="4N"):
        merge(torch.rand(6, 1, 2, 2))


@pytest.mark.skipif(not GOLDEN.is_file(), reason="golden vectors not here")
def test_the_order_is_that_of_the_published_code() -> None:
    golden = np.load(GOLDEN, allow_pickle=False)
    assert np.array_equal(split(torch.from_numpy(golden["features"])).numpy(), golden["tiles"])
    assert np.array_equal(merge(torch.from_numpy(golden["tiles"])).numpy(), golden["merged"])
