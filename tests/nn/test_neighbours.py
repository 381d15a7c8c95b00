"""Neighbour pairs: against loops over all cells, and against IRN's published offsets and paths."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_core.nn.neighbours import (
    largest_on_path,
    neighbour_offsets,
    offset_list,
    offsets_of_count,
    pair_views,
    pairs_inside,
    path_cells,
    path_runs,
)

GOLDEN = Path(__file__).parents[3] / "shared/golden"
SIZES = [(6, 9), (9, 4), (1, 7), (7, 1), (1, 1), (3, 3)]


def test_the_offsets_of_radius_4_are_in_the_published_order():
    below = [(1, -3), (1, -2), (1, -1), (1, 0), (1, 1), (1, 2), (1, 3), (2, -3), (2, -2), (2, -1), (2, 0), (2, 1), (2, 2), (2, 3)]
    last = [(3, -2), (3, -1), (3, 0), (3, 1), (3, 2)]
    assert neighbour_offsets(4).tolist() == [list(offset) for offset in [(0, 1), (0, 2), (0, 3), *below, *last]]
    assert neighbour_offsets(4).dtype == torch.int64


@pytest.mark.parametrize("radius", [2, 4, 5, 6])
def test_each_two_neighbours_are_one_pair(radius):
    both = {*offset_list(radius), *((-dy, -dx) for dy, dx in offset_list(radius))}
    span = range(-radius, radius + 1)
    assert both == {(y, x) for y in span for x in span if 0 < math.hypot(y, x) < radius and max(abs(y), abs(x)) < radius}
    assert len(both) == 2 * len(offset_list(radius))


@pytest.mark.parametrize("radius", [1, 0, -3])
def test_a_radius_without_neighbours_is_refused(radius):
    with pytest.raises(ValueError, match="radius must be at least 2"):
        neighbour_offsets(radius)


@pytest.mark.parametrize("size", SIZES)
def test_pair_views_are_both_ends_of_the_pairs_inside(size):
    cells = torch.arange(size[0] * size[1]).reshape(size)
    for dy, dx in offset_list(5):
        ends = [(y, x, y + dy, x + dx) for y in range(size[0]) for x in range(size[1]) if y + dy < size[0] and 0 <= x + dx < size[1]]
        here, there = pair_views(cells, dy, dx)
        assert here.flatten().tolist() == [y * size[1] + x for y, x, _, _ in ends]
        assert there.flatten().tolist() == [y * size[1] + x for _, _, y, x in ends]


@pytest.mark.parametrize("size", SIZES)
def test_pairs_inside_marks_the_pairs_of_pair_views(size):
    expected = torch.zeros((34, *size), dtype=torch.bool)
    for k, offset in enumerate(offset_list(5)):
        pair_views(expected[k], *offset)[0].fill_(True)
    assert torch.equal(pairs_inside(offset_list(5), *size), expected)


def test_pairs_inside_takes_offsets_of_any_sign():
    assert pairs_inside([(-1, 0), (0, 0)], 2, 1)[..., 0].tolist() == [[False, True], [True, True]]


def test_the_radius_follows_from_the_number_of_offsets():
    assert [offsets_of_count(len(offset_list(radius))) for radius in (2, 3, 5, 8)] == [offset_list(radius) for radius in (2, 3, 5, 8)]


@pytest.mark.parametrize("count", [0, 1, 33, 35])
def test_a_number_of_offsets_that_no_radius_has_is_refused(count):
    with pytest.raises(ValueError, match=f"no radius has {count}"):
        offsets_of_count(count)


def test_a_path_holds_the_cells_near_the_line_between_its_ends():
    for dy, dx in offset_list(6):
        near = set()
        for y in range(min(dy, 0), max(dy, 0) + 1):
            for x in range(min(dx, 0), max(dx, 0) + 1):
                foot = (y * dy + x * dx) / (dy * dy + dx * dx)
                if math.hypot(y - foot * dy, x - foot * dx) < 1 - 1e-9:
                    near.add((y, x))
        assert set(path_cells(dy, dx)) == near
        assert {(0, 0), (dy, dx)} <= near


def test_the_runs_of_a_path_are_its_cells():
    for offset in offset_list(8):
        assert tuple((y, x + i) for y, x, length in path_runs(*offset) for i in range(length)) == path_cells(*offset)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [2, 5])
def test_path_maximum_is_that_of_a_loop_over_the_path(size, radius):
    values = torch.from_numpy(np.random.default_rng(2).normal(size=(2, *size)))
    expected = torch.full((2, len(offset_list(radius)), *size), -7.0, dtype=torch.float64)
    for k, (dy, dx) in enumerate(offset_list(radius)):
        for y in range(size[0] - dy):
            for x in range(max(-dx, 0), size[1] - max(dx, 0)):
                expected[:, k, y, x] = torch.stack([values[:, y + i, x + j] for i, j in path_cells(dy, dx)]).amax(dim=0)
    assert torch.equal(largest_on_path(values, radius, outside=-7), expected)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden vectors not here")
def test_offsets_and_paths_are_those_of_the_published_code():
    golden = np.load(GOLDEN / "irn_edge_to_affinity_r5.npz", allow_pickle=False)
    offsets = [tuple(offset) for offset in golden["offsets_dy_dx"].tolist()]
    assert sorted(offsets) == sorted(offset_list(5))
    ours = 1 - largest_on_path(torch.from_numpy(golden["edge"][0]), 5, outside=1)
    height, width = ours.shape[1:]
    # The published code takes the pairs of rows 0..H-r and columns r-1..W-r, and sorts offsets by the length of the path.
    ours = ours[[offset_list(5).index(offset) for offset in offsets], : height - 4, 4 : width - 4]
    np.testing.assert_allclose(ours.flatten(1), golden["affinity"], rtol=0, atol=1e-6)
