"""Every background threshold in one pass: a histogram over [true class, best class, score bin] and its cumulative sums.

A pixel is foreground, of its best class, where its best score is greater than the threshold (background wins ties). The
counts equal those of thresholding and counting again for every threshold, integer for integer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsss_core.data.images import IGNORE
from wsss_core.evaluate.confusion import compact_truth

_MOST_CELLS = 1 << 15


def sweep(scores: np.ndarray, gt: np.ndarray, thresholds: Sequence[float] | np.ndarray, ignore: int = IGNORE) -> np.ndarray:
    """Return the confusion matrices of one image at every threshold.

    Parameters
    ----------
    scores
        Foreground scores, float[C-1, H, W]: channel k belongs to class k+1; there is no background channel. Of equal scores the
        lowest class wins. NaN is an error, -inf is not (a class that is not there).
    gt
        True classes, integers [H, W]: 0..C-1 or `ignore`.
    thresholds
        T values, none smaller than the one before it. They are compared as NumPy compares `scores > t` for t in thresholds: an
        array keeps its own precision, Python floats take that of the scores.

    Returns
    -------
    int64[T, C, C]
        Rows gt, columns pred.

    Raises
    ------
    ValueError
        For wrong shapes, labels out of range, NaN, or thresholds that decrease.

    Notes
    -----
    The cost does not grow with T beyond the T * C * C of the result. If most channels are absent, pass only those that
    are there to `best_foreground` and go on with `sweep_best`.
    """
    scores = np.asarray(scores)
    if scores.ndim != 3:
        raise ValueError(f"expected scores [C-1, H, W], got {scores.shape}")
    best, best_class = best_foreground(scores, np.arange(1, len(scores) + 1))
    return sweep_best(best, best_class, gt, thresholds, len(scores) + 1, ignore)


def sweep_best(
    best_score: np.ndarray,
    best_class: np.ndarray,
    gt: np.ndarray,
    thresholds: Sequence[float] | np.ndarray,
    num_classes: int,
    ignore: int = IGNORE,
) -> np.ndarray:
    """As `sweep`, from each pixel's best foreground score float[H, W] and its class, integers [H, W] in 1..C-1."""
    return curve(score_histogram(best_score, best_class, gt, thresholds, num_classes, ignore))


def best_foreground(scores: np.ndarray, classes: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's greatest score float[H, W] and its class, of channels [K, H, W] with class numbers [K].

    Of equal scores the first channel wins. Without a channel the score is -inf and the class 1.
    """
    scores = np.asarray(scores)
    small = np.min_scalar_type(int(max(classes, default=1)))
    best_class = np.full(scores.shape[1:], classes[0] if len(classes) else 1, dtype=small)
    if not len(scores):
        return np.full(scores.shape[1:], -np.inf, dtype=np.float32), best_class
    best = scores[0].copy()
    if not np.issubdtype(best.dtype, np.floating):
        raise ValueError(f"expected float scores, got {best.dtype}")
    for channel, number in zip(scores[1:], classes[1:], strict=True):
        np.copyto(best_class, small.type(number), where=channel > best)
        np.maximum(best, channel, out=best)  # hands NaN on, for the check of the histogram
    return best, best_class


def score_histogram(
    best_score: np.ndarray,
    best_class: np.ndarray,
    gt: np.ndarray,
    thresholds: Sequence[float] | np.ndarray,
    num_classes: int,
    ignore: int = IGNORE,
) -> np.ndarray:
    """Count pixels by true class, best class and number of thresholds passed: int64[C, C-1, T+1], to be added over images.

    Entry [g, c-1, b] counts the pixels of true class g whose best class is c and whose score is greater than exactly the first b
    thresholds. Raises ValueError as `sweep` does.
    """
    best_score, best_class, gt = np.asarray(best_score), np.asarray(best_class), np.asarray(gt)
    if not best_score.shape == best_class.shape == gt.shape:
        raise ValueError(f"scores, classes and gt must have one shape, got {best_score.shape}, {best_class.shape}, {gt.shape}")
    if best_class.size and not 1 <= int(best_class.min()) <= int(best_class.max()) < num_classes:
        raise ValueError(f"best classes must be in 1..{num_classes - 1}")
    if np.isnan(best_score).any():
        raise ValueError("scores must not be NaN")
    limits = _as_scores_compare(thresholds, best_score.dtype)
    shape = (num_classes + 1, num_classes - 1, len(limits) + 1)
    keys = np.multiply(compact_truth(gt, num_classes, ignore), np.int32(shape[1] * shape[2]), dtype=np.int32)
    keys += np.multiply(best_class, np.int32(shape[2]), dtype=np.int32)
    keys += _count_passed(best_score, limits)
    keys -= np.int32(shape[2])  # classes count from 1
    counts = np.bincount(keys.reshape(-1), minlength=int(np.prod(shape)))
    return counts.reshape(shape)[:num_classes].astype(np.int64)


def curve(histogram: np.ndarray) -> np.ndarray:
    """Turn a histogram int64[C, C-1, T+1] into the confusion matrices int64[T, C, C] of the T thresholds."""
    passed = np.cumsum(histogram[:, :, :0:-1], axis=2)[:, :, ::-1]  # [g, c-1, t]: greater than threshold t
    background = histogram.sum(axis=(1, 2))[:, None, None] - passed.sum(axis=1, keepdims=True)
    return np.ascontiguousarray(np.concatenate([background, passed], axis=1).transpose(2, 0, 1))


def _as_scores_compare(thresholds: Sequence[float] | np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the thresholds in the scores' type, rounded such that `score > t` keeps its answer for every score of that type."""
    if not isinstance(thresholds, np.ndarray):
        limits = np.asarray(thresholds, dtype=dtype)
    else:
        limits = thresholds.astype(dtype)
        limits = np.where(limits > thresholds, np.nextafter(limits, dtype.type(-np.inf)), limits)
    if limits.ndim != 1 or np.isnan(limits).any() or (np.diff(limits) < 0).any():
        raise ValueError("thresholds must be one row of increasing numbers")
    return limits


def _count_passed(scores: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return how many of the increasing `limits` are smaller than each score (as `searchsorted`, at a fraction of its time).

    A monotone map puts scores and limits into cells of even width that hold at most one limit each; limits of lower cells
    are passed, those of higher cells are not, and the one in the score's own cell is compared.
    """
    cells = _cells(limits)
    if cells is None:
        return np.searchsorted(limits, scores, side="left").astype(np.int32)
    scale, of_limits = cells
    below = np.zeros(of_limits[-1] + 1, dtype=np.int32)
    np.add.at(below, of_limits[:-1] + 1, 1)
    own = np.full(len(below), np.inf, dtype=limits.dtype)
    own[of_limits] = limits
    place = _cell(scores, limits, scale)
    passed = np.cumsum(below, dtype=np.int32).take(place)
    passed += scores > own.take(place)
    return passed


def _cells(limits: np.ndarray) -> tuple[np.floating, np.ndarray] | None:
    """Return a scale under which the limits fall into different cells, and these; None if there is none within reason."""
    if len(limits) < 2 or not np.isfinite(limits).all():
        return None
    count = 2 * len(limits)
    while count <= _MOST_CELLS:
        with np.errstate(over="ignore", divide="ignore"):
            scale = limits.dtype.type(count) / (limits[-1] - limits[0])
        if not np.isfinite(scale):
            return None
        of_limits = _cell(limits, limits, scale)
        if (np.diff(of_limits) > 0).all():
            return scale, of_limits
        count *= 4
    return None


def _cell(values: np.ndarray, limits: np.ndarray, scale: np.floating) -> np.ndarray:
    inside = np.clip(values, limits[0], limits[-1])
    inside -= limits[0]
    inside *= scale
    return inside.astype(np.intp)
