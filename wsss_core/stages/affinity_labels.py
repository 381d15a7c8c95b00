"""The `affinity-labels` stage: class activation maps become the labels that AffinityNet and the boundary network learn from."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsss_core.config import LABELS_CRF, AffinityLabels, validate
from wsss_core.data.images import IGNORE, read_mask, save_mask
from wsss_core.data.index import read_index
from wsss_core.errors import UserError
from wsss_core.files import atomic_path, write_json
from wsss_core.processes import map_images
from wsss_core.refine.confidence import around, labels_by_otsu, labels_by_power, labels_by_threshold
from wsss_core.refine.scores import SCORES, SUMMARY, image_places, open_store, read_image_of_size, upsample
from wsss_core.stage import SPEC, Stage
from wsss_core.stages.threshold import read_threshold

LABELS = "labels"
_ACTIVE = 1e-5
"""A map below it everywhere says nothing."""


def make_affinity_labels(stage: Stage) -> None:
    """Do the `affinity-labels` stage.

    Reads the score store of the stage in the role `scores` and, for thresholds that are `auto`, the label-free threshold in the
    role `threshold`; writes `labels/<id>.png` (indexed: 0 sure background, 255 unsure, else the class) and `summary.json` with the
    thresholds and the shares of pixels that are `background`, `foreground` and `unsure`. Parameters: those of
    `config.AffinityLabels`. Killed, it keeps the labels that were written.

    Raises `UserError` for an image that is missing, unreadable, not in the index, or of another size than its scores, and if the
    strict threshold is not greater than the loose one.
    """
    source = stage.input("scores", SCORES)
    places = image_places(read_index(stage.input("data"), stage.spec.files.get("root")), open_store(source))
    own = {key: value for key, value in stage.parameters.items() if key != "cams"}
    parameters = validate(AffinityLabels, own, str(stage.output / SPEC)).model_dump()
    if parameters["crf"] is None:
        parameters["crf"] = LABELS_CRF[parameters["method"]]
    if parameters["method"] == "thresholds":
        automatic = "auto" in (parameters["foreground"], parameters["background"])
        found = around(read_threshold(stage) if automatic else 0.0, parameters["margin"])
        for name, value in zip(("foreground", "background"), found, strict=True):
            parameters[name] = value if parameters[name] == "auto" else parameters[name]
        strict, loose = parameters["foreground"], parameters["background"]
        if strict <= loose:
            raise UserError(
                f"{stage.output / SPEC}: refine.labels.foreground {strict:g} is not greater than refine.labels.background {loose:g}"
                f"{' (one of them is automatic: give both, or neither)' if automatic else ''}"
            )
        stage.log(f"sure foreground above {strict:g}, sure background below {loose:g}")
    folder = stage.resume / LABELS
    empty = IGNORE if stage.parameters.get("cams") == "predicted" else 0
    function = partial(_make_labels, source, folder, parameters, empty)
    counts: Any = sum(map_images(function, places, stage.threads, stage, "making affinity labels"))
    background, foreground, unsure = (counts / counts.sum()).tolist()
    used = {key: value for key, value in parameters.items() if key in stage.parameters}
    write_json(stage.output / SUMMARY, {**used, "shares": {"background": background, "foreground": foreground, "unsure": unsure}})
    stage.publish_directory(LABELS)
    stage.log(
        f"{len(places)} images: {background:.0%} of the pixels surely background, {foreground:.0%} surely foreground, {unsure:.0%} unsure"
    )


def _make_labels(source: Path, folder: Path, parameters: dict[str, Any], empty: int, item: tuple[str, Path]) -> np.ndarray:
    """Write the labels of one image, unless they are there, and return how many pixels are background, foreground and unsure."""
    image_id, image_path = item
    path = folder / f"{image_id}.png"
    if path.exists():
        return _shares(read_mask(path))
    store = open_store(source)
    cams, classes = store.read(image_id)
    image = read_image_of_size(image_path, store.size(image_id))
    cams = upsample(cams, image.shape[:2]) if len(classes) else np.zeros((0, *image.shape[:2]), np.float32)
    silent = not len(classes) or float(cams.max()) < _ACTIVE
    crf = None if parameters["crf"] == "none" else parameters["crf"]
    if silent:  # no object by its tags: background. None that the classifier sees: who knows?
        labels = np.full(image.shape[:2], IGNORE if len(classes) else empty, np.uint8)
    elif parameters["method"] == "otsu":
        labels = labels_by_otsu(image, cams, classes, parameters["margin"], crf)
    elif parameters["method"] == "thresholds":
        labels = labels_by_threshold(image, cams, classes, parameters["foreground"], parameters["background"], crf)
    else:
        labels = labels_by_power(image, cams, classes, parameters["low"], parameters["high"], crf)
    with atomic_path(path) as temporary:
        save_mask(temporary, labels)
    return _shares(labels)


def _shares(labels: np.ndarray) -> np.ndarray:
    background, unsure = int((labels == 0).sum()), int((labels == IGNORE).sum())
    return np.array([background, labels.size - background - unsure, unsure], np.int64)
