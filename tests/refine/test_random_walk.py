"""Random walk: against powers of the dense transition matrix in float64, against IRN's published code, and at the edges."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from wsss_core import refine
from wsss_core.nn.neighbours import offset_list, path_cells
from wsss_core.refine import random_walk
from wsss_core.refine.random_walk import batches_of_similar_size, boundary_affinity, walk, walk_affinity, walk_boundary

GOLDEN = Path(__file__).parents[3] / "shared/golden"
SIZES = [(9, 11), (6, 13), (1, 12), (12, 1), (1, 1), (2, 3), (3, 9)]


def made(size: tuple[int, int], classes: int = 3, radius: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [C, H, W] in [0, 1] and affinities [K, H, W], mostly near 0 or 1, those of pairs that leave the image included."""
    rng = np.random.default_rng(seed)
    affinity = rng.beta(0.6, 0.6, (len(offset_list(radius)), *size))
    return torch.from_numpy(rng.random((classes, *size), np.float32)), torch.from_numpy(affinity.astype(np.float32))


def transitions(affinity: np.ndarray, radius: int, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """The dense T = A D^-1 and the diagonal of D, float64, by a loop over all pairs."""
    _, height, width = affinity.shape
    matrix = np.eye(height * width)
    for k, (dy, dx) in enumerate(offset_list(radius)):
        for y in range(height - dy):
            for x in range(max(-dx, 0), width - max(dx, 0)):
                p, q = y * width + x, (y + dy) * width + x + dx
                matrix[p, q] = matrix[q, p] = float(affinity[k, y, x]) ** beta
    degree = matrix.sum(axis=0)
    return matrix / degree, degree


def dense_walk(scores: torch.Tensor, affinity: torch.Tensor, radius: int, beta: float, steps: int) -> np.ndarray:
    matrix, _ = transitions(affinity.numpy(), radius, beta)
    return (scores.double().flatten(1).numpy() @ np.linalg.matrix_power(matrix, steps)).reshape(scores.shape)


def loop_affinity(boundary: np.ndarray, radius: int) -> np.ndarray:
    """1 - the largest boundary on the path, by a loop over all pairs; 0 where there is no pair."""
    height, width = boundary.shape
    affinity = np.zeros((len(offset_list(radius)), height, width), boundary.dtype)
    for k, (dy, dx) in enumerate(offset_list(radius)):
        for y in range(height - dy):
            for x in range(max(-dx, 0), width - max(dx, 0)):
                affinity[k, y, x] = 1 - max(boundary[y + i, x + j] for i, j in path_cells(dy, dx))
    return affinity


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 100, 256])
@pytest.mark.parametrize("size", SIZES)
def test_walk_affinity_is_the_power_of_the_dense_matrix(size, steps):
    scores, affinity = made(size)
    walked = walk_affinity(scores, affinity, radius=5, beta=8, steps=steps)
    assert walked.dtype == torch.float32
    np.testing.assert_allclose(walked, dense_walk(scores, affinity, 5, 8, steps), rtol=0, atol=3e-5)


@pytest.mark.parametrize(("radius", "beta"), [(2, 1), (3, 0.5), (4, 10), (6, 2.5)])
def test_radius_and_beta(radius, beta):
    scores, affinity = made((8, 10), radius=radius)
    expected = dense_walk(scores, affinity, radius, beta, 37)
    np.testing.assert_allclose(walk_affinity(scores, affinity, radius=radius, beta=beta, steps=37), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("classes", [0, 1, 2, 4, 5, 21])
def test_the_number_of_classes(classes):
    scores, affinity = made((7, 9), classes)
    expected = dense_walk(scores, affinity, 5, 8, 64)
    np.testing.assert_allclose(walk_affinity(scores, affinity, radius=5, beta=8, steps=64), expected, rtol=0, atol=3e-5)


def test_a_matrix_with_eigenvalues_near_minus_1():
    """Two groups of cells with affinity between them only; an odd power differs much from an even one."""
    affinity = torch.zeros(34, 6, 8)
    colour = np.indices((6, 8)).sum(axis=0) % 2
    for k, (dy, dx) in enumerate(offset_list(5)):
        affinity[k] = float((dy + dx) % 2)
    scores = torch.from_numpy(np.stack([colour, 1 - colour]).astype(np.float32))
    for steps in (9, 10, 33):
        expected = dense_walk(scores, affinity, 5, 1, steps)
        np.testing.assert_allclose(walk_affinity(scores, affinity, radius=5, beta=1, steps=steps), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("size", SIZES)
def test_walk_boundary_is_the_dense_walk_of_what_is_off_the_boundary(size):
    scores, _ = made(size)
    boundary = torch.from_numpy(np.random.default_rng(5).beta(0.4, 0.8, size).astype(np.float32))
    expected = dense_walk(scores * (1 - boundary), torch.from_numpy(loop_affinity(boundary.numpy(), 5)), 5, 10, 256)
    np.testing.assert_allclose(walk_boundary(scores, boundary), expected, rtol=0, atol=5e-5)
    assert torch.equal(walk_boundary(scores, boundary), walk_boundary(scores, boundary, radius=5, beta=10, steps=256))


def test_nothing_crosses_a_closed_boundary():
    boundary = torch.zeros(9, 15)
    boundary[:, 7] = 1
    scores = torch.zeros(1, 9, 15)
    scores[0, 4, 3] = 1
    walked = walk_boundary(scores, boundary)
    assert walked[0, :, :7].min() > 0
    assert walked[0, :, 7:].abs().max() == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("radius", [2, 5])
def test_boundary_affinity_is_that_of_a_loop_over_the_path(size, radius):
    boundary = np.random.default_rng(3).random((2, *size), np.float32)
    affinity = boundary_affinity(boundary, radius)
    assert affinity.dtype == torch.float32
    np.testing.assert_array_equal(affinity, [loop_affinity(each, radius) for each in boundary])
    assert torch.equal(boundary_affinity(boundary[1], radius), affinity[1])


def test_boundary_affinity_leaves_its_input_alone():
    boundary = torch.rand(6, 7, requires_grad=True)
    before = boundary.detach().clone()
    assert not boundary_affinity(boundary, 3).requires_grad
    assert torch.equal(boundary, before)


def test_arrays_and_tensors_give_the_same():
    scores, affinity = made((6, 7))
    before = affinity.clone(), scores.clone()
    walked = walk_affinity(scores, affinity, radius=5, beta=8, steps=9)
    assert torch.equal(walk_affinity(scores.numpy(), affinity.numpy(), radius=5, beta=8, steps=9), walked)
    assert torch.equal(affinity, before[0]) and torch.equal(scores, before[1])


def test_entries_of_pairs_that_leave_the_image_mean_nothing():
    scores, affinity = made((6, 7))
    walked = walk_affinity(scores, affinity, radius=5, beta=8, steps=9)
    affinity[0, :, -1] = math.nan
    affinity[4, -1] = 3
    assert torch.equal(walk_affinity(scores, affinity, radius=5, beta=8, steps=9), walked)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_scores_stay(value):
    _, affinity = made((9, 11))
    walked = walk_affinity(torch.full((2, 9, 11), value), affinity, radius=5, beta=8, steps=256)
    assert torch.equal(walked, torch.full((2, 9, 11), value))


def test_scores_keep_their_sum_weighted_by_degree_and_their_range():
    scores, affinity = made((10, 12))
    _, degree = transitions(affinity.numpy(), 5, 8)
    walked = walk_affinity(scores, affinity, radius=5, beta=8, steps=256)
    before, after = (each.double().flatten(1).numpy() @ degree for each in (scores, walked))
    np.testing.assert_allclose(after, before, rtol=1e-5)
    assert (walked.amax(dim=(1, 2)) <= scores.amax(dim=(1, 2))).all() and (walked.amin(dim=(1, 2)) >= scores.amin(dim=(1, 2))).all()
    assert walked.std() < 0.5 * scores.std()


def test_two_walks_are_bit_equal():
    scores, affinity = made((15, 14))
    first, second = (walk_affinity(scores, affinity, radius=5, beta=8, steps=256) for _ in range(2))
    assert torch.equal(first, second)


def test_steps_add_up():
    scores, affinity = made((9, 8))
    twice = walk_affinity(walk_affinity(scores, affinity, radius=5, beta=8, steps=40), affinity, radius=5, beta=8, steps=23)
    np.testing.assert_allclose(twice, walk_affinity(scores, affinity, radius=5, beta=8, steps=63), rtol=0, atol=3e-5)


def test_a_padded_batch_gives_what_single_images_give():
    sizes = [(9, 11), (7, 12), (1, 5), (9, 11)]
    images = [made(size, seed=i) for i, size in enumerate(sizes)]
    padded = []
    for (scores, affinity), (h, w) in zip(images, sizes, strict=True):
        inside = random_walk.pairs_inside(offset_list(5), h, w)
        space = (0, 12 - w, 0, 9 - h)
        padded.append((functional.pad(scores, space), functional.pad(torch.where(inside, affinity**8, 0), space)))
    walked = walk(torch.stack([s for s, _ in padded]), torch.stack([a for _, a in padded]), 256)
    assert walked.shape == (4, 3, 9, 12)
    for each, (scores, affinity), (h, w) in zip(walked, images, sizes, strict=True):
        expected = walk_affinity(scores, affinity, radius=5, beta=8, steps=256)
        np.testing.assert_allclose(each[:, :h, :w], expected, rtol=0, atol=1e-6)
        assert each[:, h:].abs().sum() == 0 and each[:, :, w:].abs().sum() == 0


def test_a_change_of_size_between_calls_changes_nothing():
    first, other = made((7, 8)), made((8, 7))
    before = walk_affinity(*first, radius=5, beta=8, steps=9)
    walk_affinity(*other, radius=5, beta=8, steps=9)
    assert torch.equal(walk_affinity(*first, radius=5, beta=8, steps=9), before)


@pytest.mark.parametrize("steps", [1, 2, 7, 256, 1000, 5000])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5, 1e-9])
def test_the_polynomial_keeps_its_tolerance_and_is_1_at_1(steps, tolerance):
    series = random_walk._coefficients(steps, None, tolerance)
    z = np.cos(np.linspace(0, math.pi, 20_001))
    assert np.abs(np.polynomial.chebyshev.chebval(z, series) - z**steps).max() <= tolerance
    assert math.fsum(series) == pytest.approx(1, abs=1e-14)
    assert len(series) - 1 <= min(steps, 7 * math.sqrt(steps))


def test_a_degree_can_be_given():
    scores, affinity = made((9, 11))
    weights = torch.where(random_walk.pairs_inside(offset_list(5), 9, 11), affinity**8, 0)[None]
    exact = torch.from_numpy(dense_walk(scores, affinity, 5, 8, 100))[None]
    errors = [float((walk(scores[None], weights, 100, degree=degree) - exact).abs().max()) for degree in (1, 8, 20, 99, 10_000)]
    assert errors[0] > errors[1] > errors[2] > 10 * errors[3]
    assert max(errors[3:]) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.rand(5, 6)}, "expected scores"),
        ({"affinity": torch.rand(5, 6)}, "expected affinity"),
        ({"affinity": torch.rand(33, 5, 6)}, r"expected affinity of shape \[34, 5, 6\]"),
        ({"affinity": torch.rand(34, 6, 5)}, r"expected affinity of shape \[34, 5, 6\]"),
        ({"radius": 4}, r"expected affinity of shape \[\d+, 5, 6\] for radius 4"),
        ({"radius": 1}, "radius must be at least 2"),
        ({"affinity": torch.full((34, 5, 6), 1.5)}, r"\[0, 1\]"),
        ({"affinity": torch.full((34, 5, 6), math.nan)}, "NaN"),
        ({"beta": 0}, "beta must be positive"),
        ({"beta": math.nan}, "beta must be positive"),
        ({"steps": -1}, "steps must not be negative"),
    ],
)
def test_walk_affinity_refuses_what_makes_no_sense(change, message):
    good = {"scores": torch.rand(2, 5, 6), "affinity": torch.rand(34, 5, 6), "radius": 5, "beta": 8, "steps": 4}
    with pytest.raises(ValueError, match=message):
        walk_affinity(**good | change)


def test_walk_boundary_refuses_what_makes_no_sense():
    scores, boundary = torch.rand(2, 5, 6), torch.rand(5, 6)
    with pytest.raises(ValueError, match=r"boundary map of shape \[5, 6\]"):
        walk_boundary(scores, boundary[None])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        walk_boundary(scores, boundary - 2)
    with pytest.raises(ValueError, match="steps"):
        walk_boundary(scores, boundary, steps=-1)


def test_walk_and_boundary_affinity_refuse_what_makes_no_sense():
    scores, weights = torch.rand(1, 2, 5, 6), torch.rand(1, 34, 5, 6)
    for wrong in (weights[0], weights[..., :5], weights.expand(2, -1, -1, -1)):
        with pytest.raises(ValueError, match="expected scores"):
            walk(scores, wrong, 4)
    with pytest.raises(ValueError, match="no radius has 33"):
        walk(scores, weights[:, :33], 4)
    for wrong, message in (({"degree": 0}, "degree"), ({"tolerance": 0.0}, "tolerance"), ({"tolerance": 1.0}, "tolerance")):
        with pytest.raises(ValueError, match=message):
            walk(scores, weights, 4, **wrong)
    for wrong in (torch.rand(5), torch.ones(5, 6, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="expected a boundary map"):
            boundary_affinity(wrong, 5)


def test_batches_hold_each_image_once_and_little_padding():
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in rng.integers(20, 130, (300, 2))] + [(94, 125)] * 50 + [(500, 500)]
    batches = batches_of_similar_size(sizes, 60_000, 6)
    assert sorted(position for batch in batches for position in batch) == list(range(len(sizes)))
    for batch in batches:
        padded = len(batch) * max(sizes[i][0] for i in batch) * max(sizes[i][1] for i in batch)
        assert len(batch) <= 6 and (padded <= 60_000 or len(batch) == 1)
        assert padded * 7 / 8 <= sum(sizes[i][0] * sizes[i][1] for i in batch)
    assert max(len(batch) for batch in batches) > 1


def test_batches_of_one_size_are_as_large_as_allowed():
    assert batches_of_similar_size([(3, 4)] * 5, 24, 9) == [[0, 1], [2, 3], [4]]
    assert batches_of_similar_size([(3, 4)] * 5, 999, 3) == [[0, 1, 2], [3, 4]]
    assert batches_of_similar_size([(9, 9), (3, 4), (9, 9)], 999, 3) == [[1], [0, 2]]
    assert batches_of_similar_size([], 999, 3) == []


def test_the_package_offers_boundary_affinity_without_loading_torch():
    """Worker processes import the package."""
    subprocess.run([sys.executable, "-c", "import sys, wsss_core.refine; assert 'torch' not in sys.modules"], check=True)
    assert refine.boundary_affinity is boundary_affinity
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = refine.nothing


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden vectors not here")
@pytest.mark.parametrize("name", ["irn_random_walk_r5_b10_t8", "irn_random_walk_r5_b8_t6"])
def test_walk_boundary_is_that_of_the_published_code(name):
    golden = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
    steps = 2 ** int(golden["exp_times"])
    walked = walk_boundary(golden["cams"], golden["edge"][0], radius=int(golden["radius"]), beta=int(golden["beta"]), steps=steps)
    np.testing.assert_allclose(walked, golden["walked"].reshape(walked.shape), rtol=0, atol=1e-4)
