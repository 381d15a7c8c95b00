"""Boundary counts against a search over all pairs of pixels, and the scores made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from wsss_core.evaluate.boundaries import boundary_counts, boundary_scores


def boundary(labels: np.ndarray, label: int, ignore: int = 255) -> list[tuple[int, int]]:
    """Pixels of one class (0: of each foreground class) beside another one."""
    height, width = labels.shape
    found = []
    for y in range(height):
        for x in range(width):
            if labels[y, x] in (0, ignore) or label not in (0, labels[y, x]):
                continue
            beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            values = [labels[b, c] for b, c in beside if 0 <= b < height and 0 <= c < width]
            if any(value not in (labels[y, x], ignore) for value in values):
                found.append((y, x))
    return found


def searched(truth: np.ndarray, mask: np.ndarray, classes: int, tolerance: float) -> np.ndarray:
    ignored = [(int(y), int(x)) for y, x in np.argwhere(truth == 255)]

    def near(point: tuple[int, int], others: list[tuple[int, int]]) -> bool:
        return any(math.dist(point, other) <= tolerance for other in others)

    counts = np.zeros((classes, 4), np.int64)
    for label in range(classes):
        true, predicted = boundary(truth, label), boundary(mask, label, ignore=-1)
        counted_true, counted = ([p for p in some if not near(p, ignored)] for some in (true, predicted))
        counts[label] = (
            sum(near(p, true) for p in counted),
            len(counted),
            sum(near(p, predicted) for p in counted_true),
            len(counted_true),
        )
    return counts


def regions(seed: int, classes: int = 4, size: tuple[int, int] = (17, 22)) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((classes, *size))
    return np.stack([gaussian_filter(channel, 2.5) for channel in noise]).argmax(axis=0).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tolerance", [0, 1, math.sqrt(2), 2.5, math.sqrt(13), 5])
@pytest.mark.parametrize("ignored", [False, True])
def test_counts_are_those_of_the_search(seed: int, tolerance: float, ignored: bool) -> None:
    truth, mask = regions(seed), regions(seed)
    mask = np.roll(mask, 2, axis=seed % 2)
    mask[3:6, 4:7] = 1
    if ignored:
        truth[8:11, 9:12] = 255
        truth[0, :5] = 255
    counts = boundary_counts(truth, mask, 4, tolerance)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, searched(truth, mask, 4, tolerance))
    assert counts[:, 1].all() and counts[0, 1] == counts[1:, 1].sum()


def square(left: int, label: int = 1) -> np.ndarray:
    labels = np.zeros((20, 30), np.uint8)
    labels[5:10, left : left + 5] = label
    return labels


def test_within_the_tolerance_means_at_most_that_far() -> None:
    expected = {0: 4, 1: 9, 2: 11, 2.9: 11, 3: 16}  # a square of 16 boundary pixels, moved by 3
    counts = {tolerance: boundary_counts(square(5), square(8), 2, tolerance)[1].tolist() for tolerance in expected}
    assert counts == {t: [n, 16, n, 16] for t, n in expected.items()}


def test_a_perfect_mask_scores_1_and_a_shift_beyond_the_tolerance_0() -> None:
    assert boundary_scores(boundary_counts(square(5), square(5), 2, 0))["boundary_f"] == 1
    assert boundary_scores(boundary_counts(square(5), square(20), 2, 3))["boundary_f"] == 0


def test_the_border_of_the_image_is_no_boundary() -> None:
    assert not boundary_counts(np.ones((6, 7), np.uint8), np.ones((6, 7), np.uint8), 2, 1).any()
    half = np.zeros((6, 7), np.uint8)
    half[:3] = 1
    assert boundary_counts(half, half, 2, 0).tolist() == [[7, 7, 7, 7]] * 2


def test_a_right_boundary_of_the_wrong_class_is_right_for_the_class_agnostic_score_alone() -> None:
    scores = boundary_scores(boundary_counts(square(5, 1), square(5, 2), 3, 1))
    assert scores["agnostic_f"] == 1 and scores["boundary_f"] == 0


def test_touching_objects_have_a_boundary_each() -> None:
    labels = np.full((6, 8), 1, np.uint8)
    labels[:, 4:] = 2
    assert boundary_counts(labels, labels, 3, 0).tolist() == [[12] * 4, [6] * 4, [6] * 4]


def test_pixels_near_ignored_ones_are_left_out_on_both_sides_but_are_still_there_to_be_near_to() -> None:
    truth = square(5)
    truth[5:10, 11] = 255  # one pixel right of the square's neighbours, columns 5 to 9
    assert boundary_counts(truth, square(5), 2, 0)[1].tolist() == [16] * 4
    assert boundary_counts(truth, square(5), 2, 1)[1].tolist() == [16] * 4
    assert boundary_counts(truth, square(5), 2, 2)[1].tolist() == [11] * 4
    shifted = square(4)  # its right column 8 is counted and near the true column 9, which is not
    assert boundary_counts(truth, shifted, 2, 2)[1].tolist() == [16, 16, 11, 11]
    truth[:] = 255
    assert not boundary_counts(truth, square(5), 2, 0).any()


def test_an_ignored_neighbour_makes_no_boundary() -> None:
    truth = np.where(square(5) == 1, 1, 255).astype(np.uint8)
    assert not boundary_counts(truth, square(5), 2, 0)[:, 2:].any()


def test_counts_add_up_over_images() -> None:
    counts = [boundary_counts(regions(seed), regions(seed + 9), 4, 1) for seed in (0, 1)]
    scores, total = boundary_scores(counts[0] + counts[1]), counts[0] + counts[1]
    precision, recall = total[2, 0] / total[2, 1], total[2, 2] / total[2, 3]
    assert scores["f"][2] == pytest.approx(2 * precision * recall / (precision + recall))
    assert scores["precision"][2] == precision and scores["recall"][2] == recall


def test_scores_by_hand() -> None:
    counts = np.array([[6, 8, 6, 12], [3, 4, 3, 6], [0, 4, 0, 0], [0, 0, 0, 6], [0, 0, 0, 0], [2, 2, 2, 2], [0, 0, 2, 2]])
    scores = boundary_scores(counts)
    nan = math.nan
    np.testing.assert_allclose(scores["precision"], [0.75, 0.75, 0, nan, nan, 1, nan])
    np.testing.assert_allclose(scores["recall"], [0.5, 0.5, nan, 0, nan, 1, 1])
    np.testing.assert_allclose(scores["f"], [0.6, 0.6, 0, 0, nan, 1, 0])
    assert scores["agnostic_f"] == pytest.approx(0.6)
    assert scores["boundary_f"] == pytest.approx((0.6 + 0 + 0 + 1 + 0) / 5)
    assert math.isnan(boundary_scores(np.zeros((3, 4), np.int64))["boundary_f"])


def test_wrong_arguments() -> None:
    labels = square(5)
    for truth, mask, tolerance, message in (
        (labels, labels[1:], 1, "one shape"),
        (labels[0], labels[0], 1, "one shape"),
        (labels, labels, -1, "tolerance"),
        (labels, labels, math.nan, "tolerance"),
        (7 * labels, labels, 1, "gt must be"),
        (labels, 255 * labels, 1, "mask must"),
        (labels, labels / 2, 1, "mask must"),
    ):
        with pytest.raises(ValueError, match=message):
            boundary_counts(truth, mask, 2, tolerance)
    with pytest.raises(ValueError, match="expected counts"):
        boundary_scores(np.zeros((2, 3)))
