"""Confusion matrices of label maps and the figures computed from them: IoU, false discovery rate, false negative rate.

Three pure steps: count one image (`confusion_matrix`), add up the int64 counts of a data set, compute (`segmentation_metrics`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from wsss_core.data.images import IGNORE


def confusion_matrix(gt: ArrayLike, pred: ArrayLike, num_classes: int, ignore: int = IGNORE) -> np.ndarray:
    """Count pixels by true and predicted class, in one pass over compact keys gt * C + pred.

    Parameters
    ----------
    gt
        True classes, integers of any shape: 0..C-1, or `ignore` for pixels that are not counted.
    pred
        Predicted classes of the same shape, each in 0..C-1. A prediction decides every pixel: 255 is no class, also where `gt`
        is `ignore`.
    num_classes
        C, background included.

    Returns
    -------
    int64[C, C]
        Rows gt, columns pred. All zero for an empty image.

    Raises
    ------
    ValueError
        If the shapes differ, an array holds no integers, or a value is out of range.

    Examples
    --------
    >>> confusion_matrix([0, 1, 1, 255], [0, 1, 0, 0], 2)
    array([[1, 0],
           [1, 1]])
    """
    gt, pred = np.asarray(gt), np.asarray(pred)
    if gt.shape != pred.shape:
        raise ValueError(f"gt and pred must have one shape, got {gt.shape} and {pred.shape}")
    rows = compact_truth(gt, num_classes, ignore)
    if pred.dtype.kind not in "iub" and pred.size:
        raise ValueError(f"pred must hold integers, got {pred.dtype}")
    if pred.size and (int(pred.min()) < 0 or int(pred.max()) >= num_classes):
        raise ValueError(f"pred must be in 0..{num_classes - 1}, got {int(pred.min())}..{int(pred.max())}")
    compact = np.min_scalar_type((num_classes + 1) * num_classes)
    keys = np.multiply(rows, compact.type(num_classes), dtype=compact)
    keys += pred.astype(compact, copy=False)
    counts = np.bincount(keys.reshape(-1), minlength=(num_classes + 1) * num_classes)
    return counts.reshape(num_classes + 1, num_classes)[:num_classes].astype(np.int64)


def compact_truth(gt: np.ndarray, num_classes: int, ignore: int = IGNORE) -> np.ndarray:
    """Return `gt` in 0..C, where C stands for `ignore`, in the smallest unsigned type; raises ValueError for any other value."""
    if gt.dtype.kind not in "iub" and gt.size:
        raise ValueError(f"gt must hold integers, got {gt.dtype}")
    ignored = gt == ignore
    wrong = (gt >= num_classes) & ~ignored
    if gt.dtype.kind == "i":
        wrong |= (gt < 0) & ~ignored
    if wrong.any():
        raise ValueError(f"gt must be in 0..{num_classes - 1} or {ignore} (ignore), got {gt[wrong][0]}")
    small = np.min_scalar_type(num_classes)
    if gt.dtype == small and ignore >= num_classes:
        return np.minimum(gt, small.type(num_classes))
    return np.where(ignored, num_classes, gt).astype(small)


def segmentation_metrics(cm: np.ndarray) -> dict[str, Any]:
    """Compute the figures of a data set from its confusion matrix.

    With TP, FP, FN of class c: IoU = TP/(TP+FP+FN), FDR = FP/(FP+TP), FNR = FN/(FN+TP); mIoU, mFDR and mFNR are their means over
    the classes, background included.

    Parameters
    ----------
    cm
        Counts [..., C, C], rows gt, columns pred; leading dimensions (such as thresholds) are kept.

    Returns
    -------
    dict
        `iou`, `fdr`, `fnr`: float64[..., C]; `miou`, `mfdr`, `mfnr`: float, or float64[...]. All are fractions in [0, 1].
        A ratio without a denominator is NaN and left out of its mean: all three for a class absent from both gt and pred; FDR
        alone for a class never predicted; FNR alone for a class that is nowhere in gt. So a method that never predicts a class
        pays for it in IoU and FNR, not in FDR. A mean over no class is NaN.

    Raises
    ------
    ValueError
        If the matrix is not square or holds a negative count.

    Notes
    -----
    Source: mFDR and mFNR as in RSA + CFC, Eqs. 18 and 19.
    """
    cm = np.asarray(cm)
    if cm.ndim < 2 or cm.shape[-1] != cm.shape[-2] or (cm < 0).any():
        raise ValueError(f"expected counts [..., C, C], none negative, got shape {cm.shape}")
    tp = np.diagonal(cm, axis1=-2, axis2=-1).astype(np.float64)
    fn, fp = cm.sum(axis=-1) - tp, cm.sum(axis=-2) - tp
    per_class = {"iou": _ratio(tp, tp + fp + fn), "fdr": _ratio(fp, fp + tp), "fnr": _ratio(fn, fn + tp)}
    return {**per_class, **{f"m{name}": mean_of_defined(values) for name, values in per_class.items()}}


def mean_of_defined(values: np.ndarray) -> Any:
    """Return the mean over the last axis without NaN entries: a float for one dimension; NaN where none is defined."""
    defined = ~np.isnan(values)
    mean = _ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))
    return float(mean) if mean.ndim == 0 else mean


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
