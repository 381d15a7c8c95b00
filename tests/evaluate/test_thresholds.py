"""The one-pass sweep against thresholding and counting again at every threshold, integer for integer."""

import numpy as np
import pytest

from wsss_core.evaluate.confusion import confusion_matrix
from wsss_core.evaluate.thresholds import best_foreground, curve, score_histogram, sweep, sweep_best


def again(scores, gt, thresholds):
    """Put a background channel of the threshold first and take the argmax: background wins ties."""
    matrices = []
    for t in thresholds:
        best, foreground = scores.max(axis=0), scores.argmax(axis=0) + 1
        matrices.append(confusion_matrix(gt, np.where(best > t, foreground, 0), len(scores) + 1))
    return np.array(matrices).reshape(len(matrices), len(scores) + 1, len(scores) + 1)


def made(seed, classes=4, shape=(23, 31), levels=None):
    rng = np.random.default_rng(seed)
    scores = rng.random((classes, *shape), dtype=np.float32)
    if levels:
        scores = (rng.integers(0, levels + 1, scores.shape) / levels).astype(np.float32)
    gt = rng.integers(0, classes + 1, shape).astype(np.uint8)
    gt[rng.random(shape) < 0.1] = 255
    return scores, gt


LISTS = [
    [i / 40 for i in range(40)],
    [0.3],
    [],
    [0.1, 0.1, 0.5],
    [-5.0, 0.2, 0.2000001, 0.9, 7.0],
    sorted(np.random.default_rng(1).random(33).tolist()),
    [1e-30, 1e-20, 0.5, 1e20],
    [-np.inf, 0.5, np.inf],
]


@pytest.mark.parametrize("thresholds", LISTS, ids=lambda t: f"{len(t)}-values")
@pytest.mark.parametrize("levels", [None, 40, 255])
@pytest.mark.parametrize("as_array", [False, True])
def test_equals_evaluating_again(thresholds, levels, as_array):
    scores, gt = made(0, levels=levels)
    thresholds = np.array(thresholds) if as_array else thresholds
    result = sweep(scores, gt, thresholds)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, again(scores, gt, thresholds))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("as_array", [False, True])
def test_exact_at_and_beside_every_threshold(dtype, as_array):
    thresholds = np.linspace(0, 1, 37) if as_array else [i / 36 for i in range(37)]
    near = np.array([dtype(t) for t in thresholds])
    near = np.concatenate([near, np.nextafter(near, dtype(2)), np.nextafter(near, dtype(-2)), np.array([-np.inf, np.inf], dtype)])
    scores, gt = near[None, None], np.ones((1, len(near)), np.uint8)
    np.testing.assert_array_equal(sweep(scores, gt, thresholds), again(scores, gt, thresholds))


def test_background_wins_ties_and_the_lowest_class_of_equals():
    scores = np.full((2, 1, 3), 0.5, np.float32)
    result = sweep(scores, np.array([[0, 1, 2]]), [0.25, 0.5])
    assert result[0].tolist() == [[0, 1, 0]] * 3
    assert result[1].tolist() == [[1, 0, 0]] * 3


@pytest.mark.parametrize("shape", [(0, 4), (1, 50), (50, 1)])
def test_odd_shapes(shape):
    scores, gt = made(2, shape=shape)
    np.testing.assert_array_equal(sweep(scores, gt, LISTS[0]), again(scores, gt, LISTS[0]))


def test_all_ignored():
    scores, gt = made(3)
    assert not sweep(scores, np.full_like(gt, 255), LISTS[0]).any()


def test_present_classes_alone_give_the_same():
    scores, gt = made(4, classes=6)
    scores[[0, 2, 3, 5]] = 0
    best, best_class = best_foreground(scores[[1, 4]], [2, 5])
    np.testing.assert_array_equal(sweep_best(best, best_class, gt, LISTS[0], 7), sweep(scores, gt, LISTS[0]))


def test_no_class_present_is_background_everywhere():
    gt = np.array([[0, 1, 255]])
    best, best_class = best_foreground(np.zeros((0, 1, 3), np.float32), [])
    assert sweep_best(best, best_class, gt, [-1.0, 0.0], 3).tolist() == [[[1, 0, 0], [1, 0, 0], [0, 0, 0]]] * 2


def test_histograms_of_images_add_up():
    first, second = made(5), made(6)
    histograms = [score_histogram(*best_foreground(s, range(1, 5)), gt, LISTS[0], 5) for s, gt in (first, second)]
    np.testing.assert_array_equal(curve(sum(histograms)), again(*first, LISTS[0]) + again(*second, LISTS[0]))


def test_wrong_input():
    scores, gt = made(7)
    with pytest.raises(ValueError, match="increasing"):
        sweep(scores, gt, [0.5, 0.4])
    with pytest.raises(ValueError, match="increasing"):
        sweep(scores, gt, [0.5, np.nan])
    with pytest.raises(ValueError, match="one shape"):
        sweep(scores, gt[:-1], [0.5])
    with pytest.raises(ValueError, match="gt must be in"):
        sweep(scores[:2], gt, [0.5])
    with pytest.raises(ValueError, match="C-1, H, W"):
        sweep(scores[0], gt, [0.5])
    with pytest.raises(ValueError, match=r"in 1\.\.3"):
        sweep_best(scores[0], np.zeros_like(gt), gt, [0.5], 4)
    scores[2, 3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        sweep(scores, gt, [0.5])
