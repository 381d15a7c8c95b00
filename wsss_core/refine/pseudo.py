"""One image's scores become refined probabilities or a pseudo mask, in a worker process; free of torch, which workers do not load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wsss_core.data.images import read_mask, save_mask
from wsss_core.files import atomic_path
from wsss_core.refine.crf import crf_labels, crf_soft
from wsss_core.refine.scores import add_background, open_store, otsu_background, read_image_of_size, upsample


def refine_image(source: Path, parameters: dict[str, Any], item: tuple[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the refined probabilities of one image (id, path) as uint8[1 + K, H, W] in steps of 1/255, and the class numbers int32[1 + K].

    `source` is a score store, `parameters` are those of the stage.
    """
    image_id, path = item
    store = open_store(source)
    cams, classes = store.read(image_id)
    image = read_image_of_size(path, store.size(image_id))
    if not len(classes):
        scores = np.ones((1, *image.shape[:2]), np.float32)
    else:
        scores = upsample(cams, image.shape[:2])
        if classes[0] != 0:  # a background that walked with the classes stands before them already
            scores = add_background(scores, parameters["background"], parameters.get("background_power", 1.0))
        scores = crf_soft(image, scores, parameters["crf"])
    return np.rint(scores * 255).astype(np.uint8), np.union1d([0], classes).astype(np.int32)


def label_map(scores: np.ndarray, classes: np.ndarray, threshold: float) -> np.ndarray:
    """Return, for each pixel, which channel wins: int64[H, W] in 0..K, 0 background, k the k-th foreground class.

    Parameters
    ----------
    scores
        float32[C, H, W].
    classes
        Class numbers int[C], ascending. With a background channel (class 0, first), the best channel wins and `threshold` is
        not used: the refinement has weighed the background already. Without one, a pixel is foreground where its best score
        is above `threshold`. The lower channel wins ties.
    """
    if len(classes) and classes[0] == 0:
        return scores.argmax(axis=0)
    if not len(classes):
        return np.zeros(scores.shape[1:], np.int64)
    return np.where(scores.max(axis=0) > threshold, scores.argmax(axis=0) + 1, 0)


def make_mask(source: Path, folder: Path, parameters: dict[str, Any], item: tuple[str, Path]) -> np.ndarray:
    """Write `folder/<id>.png` of one image (id, path), unless it is there, and return its pixels per class number, int64[256].

    `source` is a score store, `parameters` are those of the stage, with a `threshold` that is a number or `otsu`: the image's own. A `crf` other than
    `none` and `labels` refines the scores as the `crf` stage does, with the threshold as the background's score, and the best channel wins.
    """
    image_id, image_path = item
    path = folder / f"{image_id}.png"
    if path.exists():
        return np.bincount(read_mask(path).ravel(), minlength=256)
    threshold, crf = parameters["threshold"], parameters["crf"]
    if crf in ("none", "labels"):
        store = open_store(source)
        scores, classes = store.read(image_id)
        size = store.size(image_id)
        scores = upsample(scores, size) if len(classes) else np.zeros((0, *size), np.float32)
        if threshold == "otsu":
            threshold = otsu_background(scores.max(axis=0)) if len(classes) else 1.0
    else:
        scores, classes = refine_image(source, {"background": threshold, "crf": crf}, item)
        size = scores.shape[1:]
    labels = label_map(scores, classes, threshold)
    foreground = classes[classes > 0]
    if crf == "labels":
        labels = crf_labels(read_image_of_size(image_path, size), labels, len(foreground) + 1)
    mask = np.concatenate([[0], foreground]).astype(np.uint8)[labels]
    with atomic_path(path) as temporary:
        save_mask(temporary, mask)
    return np.bincount(mask.ravel(), minlength=256)
