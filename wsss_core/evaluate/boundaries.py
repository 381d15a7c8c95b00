"""Boundary quality of label maps: how much of the predicted and of the true boundaries lies near the other (MuSCLe, Fig. 8, as a figure).

Three pure steps, as for confusion matrices: count one image (`boundary_counts`), add up the counts of a data set, compute
(`boundary_scores`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from wsss_core.data.images import IGNORE
from wsss_core.evaluate.confusion import compact_truth, mean_of_defined


def boundary_counts(truth: ArrayLike, mask: ArrayLike, num_classes: int, tolerance: float, ignore: int = IGNORE) -> np.ndarray:
    """Count the boundary pixels of one image that lie within `tolerance` of the other map's boundary of the same class.

    A boundary pixel of a class is one of its pixels with a pixel of another class above, below, left or right of it. The edge of the
    image makes no boundary, nor does an ignored neighbour.

    Parameters
    ----------
    truth
        uint8[H, W], true classes: 0..C-1, 0 background, or `ignore`.
    mask
        uint8[H, W], predicted classes 0..C-1.
    num_classes
        C, background included.
    tolerance
        In pixels, >= 0; distances are Euclidean, and one equal to it is within. (0.75 % of the image's diagonal in Csurka et al. 2013:
        4.7 pixels at 375 x 500.)
    ignore
        Boundary pixels of both maps within the tolerance of such a pixel are not counted, for what they should be near may be hidden.
        They still count as something to be near to.

    Returns
    -------
    int64[C, 4]
        Predicted boundary pixels near a true one, all predicted ones, true ones near a predicted one, all true ones. Rows 1..C-1 are the
        foreground classes. Row 0 is class-agnostic: the boundaries of all of them as one, whatever class is on the other map.

    Raises
    ------
    ValueError
        If the shapes differ or are not two-dimensional, a value is out of range, or the tolerance is negative.

    Notes
    -----
    Source: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013; Perazzi et al., "A benchmark
    dataset and evaluation methodology for video object segmentation", CVPR 2016 (which matches by dilation; so does this, by distance).
    The masks of VOC itself outline every object with a band of ignored pixels about 5 wide: hardly a boundary is left to count there.
    Use masks without it, such as those of SBD.
    """
    truth, mask = np.asarray(truth), np.asarray(mask)
    if truth.ndim != 2 or truth.shape != mask.shape:
        raise ValueError(f"truth and mask must have one shape [H, W], got {truth.shape} and {mask.shape}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    true_labels = compact_truth(truth, num_classes, ignore)
    if mask.size and (mask.dtype.kind not in "iu" or int(mask.min()) < 0 or int(mask.max()) >= num_classes):
        raise ValueError(f"mask must hold integers in 0..{num_classes - 1}")
    ignored = true_labels == num_classes
    true_points, points = np.argwhere(_edges(true_labels, ignored) & (true_labels > 0)), np.argwhere(_edges(mask) & (mask > 0))
    true_classes, classes = true_labels[tuple(true_points.T)], mask[tuple(points.T)]
    hidden = np.argwhere(ignored)
    true_counted, counted = (~_near(some, hidden, tolerance) for some in (true_points, points))
    counts = np.zeros((num_classes, 4), np.int64)
    for label in (0, *np.union1d(classes, true_classes)):
        true_own, own = (true_classes == label) | (label == 0), (classes == label) | (label == 0)
        near = _near(points[own & counted], true_points[true_own], tolerance)
        found = _near(true_points[true_own & true_counted], points[own], tolerance)
        counts[label] = near.sum(), near.size, found.sum(), found.size
    return counts


def boundary_scores(counts: np.ndarray) -> dict[str, Any]:
    """Compute the figures of a data set from its counts.

    Parameters
    ----------
    counts
        int64[C, 4], the sum of `boundary_counts` over the images.

    Returns
    -------
    dict
        `precision`, `recall`, `f`: float64[C] in [0, 1], rows as in `boundary_counts`: precision is the matched part of the predicted
        boundary, recall that of the true one, f their harmonic mean. `agnostic_f`: float, the class-agnostic one (row 0);
        `boundary_f`: float, the mean of f over the foreground classes. Without predicted pixels precision is NaN, without true ones
        recall. f is NaN only without both, and 0 with one of them: a class never predicted is a failure, a class absent from both is
        none. NaN is left out of the mean, whose value is NaN if nothing is left.

    Raises
    ------
    ValueError
        If these are no such counts.

    Notes
    -----
    Over a data set all boundary pixels weigh the same. Csurka et al. average the scores of images, where a small object in one image
    weighs as much as a large one in another, and an image without the class has no score.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[1] != 4 or (counts < 0).any():
        raise ValueError(f"expected counts [C, 4], none negative, got shape {counts.shape}")
    near, predicted, found, true = counts.T.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = near / predicted, found / true
        f = 2 * precision * recall / (precision + recall)
    f = np.where((near == 0) | (found == 0), 0.0, f)
    f = np.where(predicted + true == 0, np.nan, f)
    return {"precision": precision, "recall": recall, "f": f, "agnostic_f": float(f[0]), "boundary_f": mean_of_defined(f[1:])}


def _edges(labels: np.ndarray, ignored: np.ndarray | None = None) -> np.ndarray:
    """Return bool[H, W], the pixels that differ from one of their 4 neighbours, of pairs with an ignored pixel none."""
    edges = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        here, there = (_but(labels, axis, end) for end in (-1, 0))
        differ = here != there
        if ignored is not None:
            differ &= ~(_but(ignored, axis, -1) | _but(ignored, axis, 0))
        for end in (-1, 0):
            view = _but(edges, axis, end)
            view |= differ
    return edges


def _but(values: np.ndarray, axis: int, end: int) -> np.ndarray:
    """Return a view of the rows (or columns) without the last (-1) or the first (0)."""
    part = slice(None, -1) if end == -1 else slice(1, None)
    return values[part] if axis == 0 else values[:, part]


def _near(points: np.ndarray, targets: np.ndarray, tolerance: float) -> np.ndarray:
    """Return bool[P], which points [P, 2] lie within `tolerance` of one of the targets [T, 2]."""
    if not len(points) or not len(targets):
        return np.zeros(len(points), bool)
    distances, _ = cKDTree(targets).query(points, distance_upper_bound=tolerance + 1)  # the bound itself would be left out
    return distances <= tolerance
