"""The `pseudo` stage: scores become pseudo masks, one indexed PNG per image."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsss_core.data.images import read_mask, save_mask
from wsss_core.data.index import read_index
from wsss_core.files import atomic_path, write_json
from wsss_core.processes import map_images
from wsss_core.refine.crf import crf_labels
from wsss_core.refine.crf_stage import refine_image
from wsss_core.refine.scores import SCORES, SUMMARY, image_places, open_store, otsu_background, read_image_of_size, upsample
from wsss_core.refine.threshold import read_threshold
from wsss_core.stage import Stage

MASKS = "masks"


def make_pseudo_masks(stage: Stage) -> None:
    """Do the `pseudo` stage.

    Reads the score store of the stage in the role `scores`; writes `masks/<id>.png` and `summary.json`:

    ``images``            number of masks
    ``all_background``    ids of the images whose mask holds no foreground
    ``missed``            of these, how many have classes by their label
    ``share``             share of all pixels by class name, background included
    ``threshold``         the background threshold that was used, None if a background channel decided

    Parameters of the stage: `threshold` (see `label_map`; `auto`: that of the stage in the role `threshold`), `crf` (`none`, or `labels`: a CRF on the label map). Killed, it
    keeps the masks that were written. Raises `UserError` for an image that is missing, unreadable, not in the index, or of
    another size than its scores.
    """
    source = stage.input("scores", SCORES)
    store = open_store(source)
    index = read_index(stage.input("data"), stage.spec.files.get("root"))
    places = image_places(index, store)
    folder = stage.resume / MASKS
    parameters = dict(stage.parameters)
    if parameters["threshold"] == "auto":
        parameters["threshold"] = read_threshold(stage)
    function = partial(make_mask, source, folder, parameters)
    counts = np.stack(list(map_images(function, places, stage.threads, stage, "making pseudo masks")))
    empty = [name for name, row in zip(store.ids, counts, strict=True) if not row[1:].any()]
    missed = sum(bool((store.read(name)[1] > 0).any()) for name in empty)
    share = counts.sum(axis=0) / counts.sum()
    summary = {
        "images": len(places),
        "all_background": empty,
        "missed": missed,
        "threshold": parameters["threshold"],
        "share": {name: round(float(share[number]), 6) for number, name in enumerate(index.classes)},
    }
    write_json(stage.output / SUMMARY, summary)
    stage.publish_directory(MASKS)
    stage.log(f"{len(places)} masks, {share[0]:.0%} of the pixels background; {len(empty) / len(places):.1%} of the images all background")
    if missed:
        stage.log(f"{missed} images have classes by their label but no foreground in their mask")


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
