"""`threshold: auto`: a background threshold for scores without a background channel, chosen without any mask.

The rule (ours): refine a sample of the images by a dense CRF whose background is each image's own Otsu threshold, and take the
threshold at which the plain scores, cut off, agree best with the refined labels. The CRF sees the picture, so its labels follow
objects better than any cut through the scores. docs/refinement.md compares the rule with others and with the oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wsss_core.evaluate.confusion import segmentation_metrics
from wsss_core.evaluate.thresholds import best_foreground, curve, score_histogram
from wsss_core.processes import map_images
from wsss_core.refine.crf import crf_soft
from wsss_core.refine.scores import add_background, open_store, read_image_of_size, upsample
from wsss_core.stage import Stage

CRF = "vitpcm"
MOST_IMAGES = 300
"""Images of the sample: on MSRC, a third of its 353 training images gave the same threshold as all, up to 0.02."""
_WITHOUT_CLASSES = 0.5
GRID = [step / 100 for step in range(1, 100)]


def compare_thresholds(
    stage: Stage, source: Path, places: Sequence[tuple[str, Path]], most: int, threads: int, what: str
) -> tuple[np.ndarray, int]:
    """Hold the scores of a sample of the images, up to `most` that have a class, evenly spaced, against their refined labels.

    Return the sum of the images' histograms, int64[C, C-1, T+1], see `thresholds.score_histogram`, and the number of images.
    """
    store = open_store(source)
    places = [place for place in places if len(store.classes(place[0]))]
    chosen = np.unique(np.linspace(0, len(places) - 1, min(len(places), most)).round().astype(int))
    sample = [places[i] for i in chosen]
    histogram = np.zeros((store.num_classes, store.num_classes - 1, len(GRID) + 1), np.int64)
    for each in map_images(partial(_agreement, source, store.num_classes), sample, threads, stage, what):
        histogram += each
    return histogram, len(sample)


def best_threshold(stage: Stage, histogram: np.ndarray, images: int, what: str = "") -> dict[str, Any]:
    """Return the content of `threshold.json` from what `compare_thresholds` returned; log it, with `what` before it."""
    if not images:
        stage.log(f"{what}no image has a class: nothing to go by, and nothing to cut; threshold {_WITHOUT_CLASSES:g}")
        return {"threshold": _WITHOUT_CLASSES, "agreement": None, "images": 0, "thresholds": [], "agreements": []}
    agreements = segmentation_metrics(curve(histogram))["miou"]
    best = int(np.argmax(agreements))
    if not GRID[4] < GRID[best] < GRID[-5]:
        stage.log(
            f"{what}threshold {GRID[best]:g} lies at the end of its range: scores and refined labels have little in common; look at both"
        )
    stage.log(f"{what}threshold {GRID[best]:g}: agrees best with the refined labels of {images} images (mIoU {agreements[best]:.3f})")
    return {
        "threshold": GRID[best],
        "agreement": float(agreements[best]),
        "images": images,
        "thresholds": GRID,
        "agreements": agreements.tolist(),
    }


def _agreement(source: Path, num_classes: int, item: tuple[str, Path]) -> np.ndarray:
    """Return the histogram of one image's scores against its refined labels, see `thresholds.score_histogram`."""
    image_id, path = item
    store = open_store(source)
    scores, classes = store.read(image_id)
    image = read_image_of_size(path, store.size(image_id))
    scores = upsample(scores, image.shape[:2])
    refined = crf_soft(image, add_background(scores, "otsu", 1.0), CRF).argmax(axis=0)
    labels = np.concatenate([[0], classes])[refined].astype(np.uint8)
    best, best_class = best_foreground(scores, classes)
    return score_histogram(best, best_class, labels, GRID, num_classes)
