"""Counting pixels: one confusion matrix, and the confusion matrices of 40 background thresholds."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks import inputs
from benchmarks.harness import Forms, HotSpot, Setup
from wsss_core.evaluate.confusion import confusion_matrix
from wsss_core.evaluate.thresholds import best_foreground, sweep_best

CLASSES, IGNORE = 21, 255
THRESHOLDS = [step / 40 for step in range(40)]
TINY = (60, 80)


def per_class_masks(gt: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """The published form (PSA): three masks per class. Returns int64[3, C]: pixels of the class in gt, in pred, in both."""
    counted = gt < IGNORE
    right = (pred == gt) & counted
    counts = [(((gt == c) & counted).sum(), ((pred == c) & counted).sum(), ((gt == c) & right).sum()) for c in range(CLASSES)]
    return np.array(counts, np.int64).T


def margins(matrix: np.ndarray) -> np.ndarray:
    return np.stack([matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()])


def wrong_counts(expected: np.ndarray, ours: np.ndarray) -> float:
    return float(np.abs(expected - ours).max())


def confusion(setup: Setup) -> Forms:
    size = TINY if setup.tiny else inputs.VOC_SIZE
    gt = inputs.truth(CLASSES, size, 6)
    noise = np.random.default_rng(6).integers(0, CLASSES, size).astype(np.uint8)
    pred = np.where((gt == IGNORE) | (inputs.smooth(1, size, 7)[0] > 0.7), noise, gt)
    return Forms(
        {"masks": partial(per_class_masks, gt, pred)},
        partial(confusion_matrix, gt, pred, CLASSES),
        lambda expected, ours: wrong_counts(expected, margins(ours)),
        tolerance=0,
    )


def evaluate_again(scores: np.ndarray, classes: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """The published form (IRN): for each threshold a background channel, the best channel of each pixel, and counting."""
    matrices = []
    names = np.concatenate([[0], classes])
    for threshold in THRESHOLDS:
        padded = np.pad(scores, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
        pred = names[padded.argmax(axis=0)]
        counted = gt < IGNORE
        keys = CLASSES * gt[counted].astype(np.int64) + pred[counted]
        matrices.append(np.bincount(keys, minlength=CLASSES**2).reshape(CLASSES, CLASSES))
    return np.array(matrices)


def one_pass(scores: np.ndarray, classes: np.ndarray, gt: np.ndarray) -> np.ndarray:
    return sweep_best(*best_foreground(scores, classes), gt, THRESHOLDS, CLASSES)


def thresholds(setup: Setup) -> Forms:
    size = TINY if setup.tiny else inputs.VOC_SIZE
    arguments = (inputs.cams(2, size, 8), np.array([8, 15]), inputs.truth(CLASSES, size, 9))
    return Forms({"again": partial(evaluate_again, *arguments)}, partial(one_pass, *arguments), wrong_counts, tolerance=0)


HOT_SPOTS = [
    HotSpot(
        "confusion",
        "confusion matrix, 375x500, 21 classes",
        "masks per class",
        "one bincount on uint16 keys",
        target=8,
        best=10.4,
        agreement="greatest difference of counts",
        make=confusion,
    ),
    HotSpot(
        "thresholds",
        "40 background thresholds, 375x500, 2 classes there",
        "evaluated 40 times",
        "one histogram, cumulative sums",
        target=20,
        best=36,
        agreement="greatest difference of counts",
        make=thresholds,
    ),
]
