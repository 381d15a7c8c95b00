"""Figures of a multi-label classifier: average precision, share of correct decisions, share of exactly right images."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsss_core.evaluate.confusion import mean_of_defined


def classification_metrics(scores: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> dict[str, Any]:
    """Compute the figures of a multi-label classifier.

    Parameters
    ----------
    scores
        Probabilities, float[N, C].
    labels
        0 or 1, [N, C].
    threshold
        A class is predicted where its probability is greater.

    Returns
    -------
    dict
        `ap`: float64[C], see `average_precision`; `map`: their mean over the classes that have a positive, NaN if none has;
        `accuracy`: share of the N * C decisions "class there or not" that are right (high for rare classes whatever the
        classifier: read it beside the mAP); `exact_match`: share of the N images whose whole set of classes is right. Fractions.

    Raises
    ------
    ValueError
        If the shapes differ or are not [N, C] with N > 0, labels are not 0 or 1, or a score is NaN.
    """
    scores, labels = _validate(scores, labels)
    right = (scores > threshold) == labels
    ap = average_precision(scores, labels)
    return {"ap": ap, "map": mean_of_defined(ap), "accuracy": float(right.mean()), "exact_match": float(right.all(axis=1).mean())}


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return float64[C]: per class the area under the precision-recall steps, sum over n of (R_n - R_{n-1}) P_n.

    Not interpolated (scikit-learn's `average_precision_score`), unlike the 11-point form of early VOC years. A class without
    a positive is NaN. Arguments and errors as in `classification_metrics`.
    """
    from sklearn.metrics import average_precision_score

    scores, labels = _validate(scores, labels)
    pairs = zip(labels.T, scores.T, strict=True)
    return np.array([average_precision_score(truth, score) if truth.any() else np.nan for truth, score in pairs], dtype=np.float64)


def _validate(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape or not len(scores):
        raise ValueError(f"expected scores and labels [N, C] with N > 0, got {scores.shape} and {labels.shape}")
    if not np.isin(labels, (0, 1)).all() or np.isnan(scores).any():
        raise ValueError("labels must be 0 or 1, scores must not be NaN")
    return scores, labels.astype(bool)
