"""The `evaluate` stage: judges a classifier, scores, pseudo masks or predictions against the truth of a split.

The one stage that opens pixel masks to compute figures. Every figure carries how it came about: split, threshold and its rule,
and the protocol that the plan hands in (image labels, CRF, scales, flip).
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsss_core.data.images import IGNORE
from wsss_core.data.index import DataIndex, Record, read_index
from wsss_core.data.mask_sets import read_mask_of, round_archive
from wsss_core.data.truth import mask_path, read_truth
from wsss_core.errors import UserError
from wsss_core.evaluate.boundaries import boundary_counts, boundary_scores
from wsss_core.evaluate.confusion import confusion_matrix, segmentation_metrics
from wsss_core.evaluate.embeddings import write_embeddings
from wsss_core.evaluate.thresholds import best_foreground, curve, score_histogram
from wsss_core.files import write_json
from wsss_core.processes import map_images
from wsss_core.refine.scores import open_store, upsample
from wsss_core.stage import Stage
from wsss_core.stages.threshold import read_threshold, threshold_in

SCORES, MASKS = ("cams", "walk", "refine"), ("pseudo", "segmenter", "end_to_end")
FIGURES, CONFUSION, PER_CLASS, THRESHOLDS = "figures.json", "confusion.npy", "per_class.csv", "thresholds.csv"
_CHUNK = 32
_FEW_IMAGES = 256
"""Up to here one process is faster than starting more."""


@dataclass
class Counts:
    """What the images of a chunk add up to.

    Attributes
    ----------
    confusion
        int64[C, C] of the masks, or of the argmax over all channels of the scores.
    histogram
        int64[C, C-1, T+1] of the scores, see `thresholds.score_histogram`.
    boundaries
        int64[C, 4] of the masks, see `boundaries.boundary_counts`.
    with_background, without_background
        Number of images whose scores have a background channel, and whose have foreground channels alone.
    """

    confusion: np.ndarray
    histogram: np.ndarray | None = None
    boundaries: np.ndarray | None = None
    with_background: int = 0
    without_background: int = 0

    def add(self, other: Counts) -> None:
        """Add another chunk."""
        self.confusion += other.confusion
        if self.histogram is not None and other.histogram is not None:
            self.histogram += other.histogram
        if self.boundaries is not None and other.boundaries is not None:
            self.boundaries += other.boundaries
        self.with_background += other.with_background
        self.without_background += other.without_background


def evaluate(stage: Stage) -> None:
    """Compute the figures of `parameters["subject"]` on `parameters["split"]`.

    Writes `figures.json` always, and, apart from the classifier's, where the split has masks: `confusion.npy` (int64[C, C] at the
    rule that is no oracle), `per_class.csv`, and for scores `thresholds.csv`. A split without masks is no error: its list of
    figures is empty and the log says so.

    Raises
    ------
    UserError
        If some images of the split lack a mask, a size differs from the truth's, or a prediction holds a wrong label.
    """
    parameters = stage.parameters
    subject, split = parameters["subject"], parameters["split"]
    index = read_index(stage.input("data"), stage.spec.files.get("root"))
    records = index.split(split)
    result: dict[str, Any] = {"subject": subject, "split": split, "protocol": parameters.get("protocol", {}), "images": len(records)}
    if subject == "classifier":
        result["figures"] = [_judge_classifier(stage, index, split)]
    elif all(record.mask is None for record in records):
        stage.log(f"the split '{split}' has no masks: no figures of {subject}")
        result["figures"] = []
    elif subject == "patches":
        result["figures"] = [_judge_patches(stage, index, records)]
    elif subject in MASKS:
        result["figures"] = [_judge_masks(stage, index, records)]
    elif subject in SCORES:
        result.update(_judge_scores(stage, index, records))
    else:
        raise UserError(f"{stage.output}: parameters.subject: expected classifier, patches, {', '.join(SCORES + MASKS)}, got '{subject}'")
    write_json(stage.output / FIGURES, result)


def _judge_classifier(stage: Stage, index: DataIndex, split: str) -> dict[str, Any]:
    from wsss_core.engine.classifier import classify
    from wsss_core.evaluate.classification import classification_metrics

    scores, labels, embeddings = classify(stage, index, split)
    if embeddings is not None:
        write_embeddings(stage, embeddings, labels)
    metrics = classification_metrics(scores, labels)
    ap = dict(zip(index.classes[1:], metrics["ap"].tolist(), strict=True))
    _write_csv(stage, PER_CLASS, [{"class": name, "ap": value} for name, value in ap.items()])
    stage.log(f"mAP {metrics['map']:.4f}, accuracy {metrics['accuracy']:.4f}")
    return {"rule": "none", "threshold": None, **{key: metrics[key] for key in ("map", "accuracy", "exact_match")}, "ap": ap}


def _judge_patches(stage: Stage, index: DataIndex, records: Sequence[Record]) -> dict[str, Any]:
    import torch
    from torch.nn import functional

    from wsss_core.engine.patches import patch_embeddings
    from wsss_core.evaluate.patches import class_distances, patch_classes

    sums, counts = torch.zeros(()), torch.zeros(index.num_classes, dtype=torch.float64)
    for record, (image, embeddings) in zip(records, patch_embeddings(stage, index, records), strict=True):
        truth = read_truth(index, record, image.shape[:2])
        belongs = patch_classes(truth, (embeddings.shape[1], embeddings.shape[2]), index.num_classes).flatten(1)
        sums = sums + belongs @ functional.normalize(embeddings.flatten(1), dim=0).T
        counts += belongs.sum(dim=1)
    inter, intra = class_distances(sums, counts)
    stage.log(f"cosine distance of patches: {inter:.4f} between classes, {intra:.4f} within")
    return {"rule": "none", "threshold": None, "inter_class": inter, "intra_class": intra}


def _judge_masks(stage: Stage, index: DataIndex, records: Sequence[Record]) -> dict[str, Any]:
    epoch = stage.parameters.get("round")
    place = stage.input("masks", "masks") if epoch is None else round_archive(stage.input("masks"), epoch)
    tolerance = stage.parameters.get("boundary_tolerance")
    counts = _count_all(stage, partial(count_masks, _light(index), place, boundary_tolerance=tolerance), records)
    # That of the pseudo masks, as the plan recorded it; a segmenter, or masks made by argmax, have none.
    rule, threshold = _rule(
        stage, stage.parameters.get("protocol", {}).get("threshold"), None if epoch is None else place.with_suffix(".json")
    )
    figure = _figure(rule, threshold, counts.confusion, index.classes)
    _write_details(stage, counts.confusion, [figure])
    if counts.boundaries is not None:
        scores = boundary_scores(counts.boundaries)
        figure |= {"boundary_f": scores["boundary_f"], "boundary_agnostic_f": scores["agnostic_f"], "boundary_tolerance": tolerance}
        stage.log(
            f"boundaries within {tolerance:g} pixels: F-score {scores['boundary_f']:.4f}, whatever the class {scores['agnostic_f']:.4f}"
        )
    return figure


def _judge_scores(stage: Stage, index: DataIndex, records: Sequence[Record]) -> dict[str, Any]:
    steps = stage.parameters["thresholds"]
    rule, fixed = _rule(stage, stage.parameters.get("threshold"))
    grid = [i / steps for i in range(steps)]
    both = sorted({*grid, *([] if fixed is None else [fixed])})
    counts = _count_all(stage, partial(count_scores, _light(index), stage.input("scores", "scores.h5"), both), records)
    assert counts.histogram is not None
    matrices = dict(zip(both, curve(counts.histogram), strict=True))
    if counts.with_background and counts.without_background:
        raise UserError(f"{stage.input('scores', 'scores.h5')}: some images have a background channel and some have none")
    if counts.with_background:
        matrix = counts.confusion
        figures = [_figure("argmax", None, matrix, index.classes)]
    elif fixed is None:
        raise UserError(f"{stage.output}: parameters.threshold: missing; scores without a background channel need one")
    else:
        matrix = matrices[fixed]
        figures = [_figure(rule, fixed, matrix, index.classes)]
    metrics = segmentation_metrics(np.stack([matrices[t] for t in grid]))
    if not np.isnan(metrics["miou"]).all():  # the lowest of equally good thresholds
        oracle = grid[int(np.nanargmax(metrics["miou"]))]
        figures.append(_figure("oracle", oracle, matrices[oracle], index.classes))
    table = {"threshold": grid, **{name: metrics[name].tolist() for name in ("miou", "mfdr", "mfnr")}}
    _write_csv(stage, THRESHOLDS, [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)])
    _write_details(stage, matrix, figures)
    return {"figures": figures, "curve": table}


def _rule(stage: Stage, threshold: float | str | None, own: Path | None = None) -> tuple[str, float | None]:
    """Return how a threshold was chosen, and its value.

    `auto` stands for that of the stage in the role `threshold`, or of a training's round, in the file `own`. `otsu`: each image has its own.
    """
    if threshold == "auto":
        return "auto", read_threshold(stage) if own is None else threshold_in(own)
    if threshold == "otsu":
        return "otsu", None
    return ("argmax", None) if threshold is None else ("fixed", float(threshold))


def count_masks(index: DataIndex, place: Path, records: Sequence[Record], boundary_tolerance: float | None = None) -> Counts:
    """Count the pixels of predicted masks in a folder or an archive (`data.mask_sets`); with a tolerance, those of their boundaries too."""
    c = index.num_classes
    counts = Counts(np.zeros((c, c), np.int64), boundaries=None if boundary_tolerance is None else np.zeros((c, 4), np.int64))
    for record in records:
        truth, mask = read_truth(index, record), read_mask_of(place, record.id, index.num_classes)
        name = place / f"{record.id}.png"
        if mask.shape != truth.shape:
            raise UserError(f"{name}: is {_pixels(mask)} pixels, the true mask {mask_path(index, record)} {_pixels(truth)}")
        if (mask == IGNORE).any():
            raise UserError(f"{name}: holds ignored pixels ({IGNORE}); a prediction must decide every pixel")
        counts.confusion += confusion_matrix(truth, mask, c)
        if boundary_tolerance is not None:
            counts.boundaries += boundary_counts(truth, mask, c, boundary_tolerance)
    return counts


def count_scores(index: DataIndex, path: Path, thresholds: Sequence[float], records: Sequence[Record]) -> Counts:
    """Count the pixels of the scores in a store, resized to the image, at every threshold.

    Where there is a background channel (class 0), also by the argmax over all channels; background wins ties.
    """
    c = index.num_classes
    counts = Counts(np.zeros((c, c), np.int64), np.zeros((c, c - 1, len(thresholds) + 1), np.int64))
    store = open_store(path)
    for record in records:
        scores, classes = store.read(record.id)
        size = store.size(record.id)
        truth = read_truth(index, record, size)
        scores = upsample(scores, size)
        best, best_class = best_foreground(scores[classes > 0], classes[classes > 0])
        counts.histogram += score_histogram(best, best_class, truth, thresholds, c)
        if 0 in classes:
            labels = np.where(best > scores[classes == 0][0], best_class, 0)
            counts.confusion += confusion_matrix(truth, labels, c)
            counts.with_background += 1
        elif len(classes):
            counts.without_background += 1
        else:  # nothing was found in the image: background everywhere, under either rule
            counts.confusion += confusion_matrix(truth, np.zeros_like(truth), c)
    return counts


def _count_all(stage: Stage, count: Callable[[Sequence[Record]], Counts], records: Sequence[Record]) -> Counts:
    """Add up the chunks of a split, in `stage.threads` processes unless the images are few. Integers: the order is of no matter."""
    chunks = [records[i : i + _CHUNK] for i in range(0, len(records), _CHUNK)]
    processes = stage.threads if len(records) > _FEW_IMAGES else 1
    results = map_images(count, chunks, processes, stage, f"evaluating chunks of {_CHUNK} images")
    total = next(results)  # a split is never empty
    for counts in results:
        total.add(counts)
    return total


def _light(index: DataIndex) -> DataIndex:
    """The index without its records: what a worker needs to find and check files."""
    return dataclasses.replace(index, splits={})


def _figure(rule: str, threshold: float | None, matrix: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    metrics = segmentation_metrics(matrix)
    per_class = {key: dict(zip(classes, metrics[key].tolist(), strict=True)) for key in ("iou", "fdr", "fnr")}
    return {"rule": rule, "threshold": threshold, **{key: metrics[key] for key in ("miou", "mfdr", "mfnr")}, **per_class}


def _write_details(stage: Stage, matrix: np.ndarray, figures: Sequence[dict[str, Any]]) -> None:
    with stage.write(CONFUSION) as path, open(path, "wb") as file:
        np.save(file, matrix, allow_pickle=False)
    rows = []
    for figure in figures:
        start = {"rule": figure["rule"], "threshold": figure["threshold"]}
        rows += [{**start, "class": name, **{key: figure[key][name] for key in ("iou", "fdr", "fnr")}} for name in figure["iou"]]
        at = "" if figure["threshold"] is None else f" {figure['threshold']:g}"
        stage.log(f"{figure['rule']}{at}: mIoU {figure['miou']:.4f}, mFDR {figure['mfdr']:.4f}, mFNR {figure['mfnr']:.4f}")
    _write_csv(stage, PER_CLASS, rows)


def _write_csv(stage: Stage, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows of equal keys; None and NaN become empty fields."""
    rows = list(rows)
    with stage.write(name) as path, open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if value is None or value != value else value for key, value in row.items()} for row in rows)


def _pixels(mask: np.ndarray) -> str:
    return f"{mask.shape[1]}x{mask.shape[0]}"
