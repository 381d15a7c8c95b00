"""The dense CRF: labels that are not there, a second unary on the same image, many images. Free of torch, which workers do not load."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.utils import unary_from_labels, unary_from_softmax

from benchmarks import inputs
from benchmarks.harness import Forms, HotSpot, Setup
from wsss_core.processes import map_images
from wsss_core.refine.confidence import labels_by_threshold
from wsss_core.refine.crf import crf_soft
from wsss_core.refine.predictions import refine_probabilities

TINY = (24, 32)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_IMAGES_PER_CORE = 24


def all_labels(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The published form for a segmenter's probabilities: a field of all labels."""
    count, height, width = probabilities.shape
    field = DenseCRF2D(width, height, count)
    field.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(probabilities)))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(image), compat=10)
    return np.array(field.inference(10)).reshape(probabilities.shape).argmax(axis=0)


def share_of_pixels(expected: np.ndarray, ours: np.ndarray) -> float:
    return float((np.asarray(expected) != ours).mean())


def segmenter_output(size: tuple[int, int], seed: int) -> np.ndarray:
    """Probabilities float32[21, H, W]: three labels that are there, and a little of all others."""
    logits = inputs.smooth(21, size, seed)
    logits[[0, 8, 15]] = 12 * logits[[0, 8, 15]] + 4
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def present_labels(setup: Setup) -> Forms:
    size = TINY if setup.tiny else inputs.VOC_SIZE
    image, probabilities = inputs.photograph(size, 3), segmenter_output(size, 4)
    return Forms(
        {"all": partial(all_labels, image, probabilities)},
        partial(refine_probabilities, image, probabilities, "soft"),
        share_of_pixels,
        tolerance=1e-3,
    )


def refine_label_map(image: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    field = DenseCRF2D(image.shape[1], image.shape[0], count)
    field.setUnaryEnergy(unary_from_labels(labels, count, gt_prob=0.7, zero_unsure=False))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
    return np.array(field.inference(10)).argmax(axis=0).reshape(labels.shape)


def two_fields(image: np.ndarray, maps: np.ndarray, names: np.ndarray, foreground: float, background: float) -> np.ndarray:
    """The published form (IRN): a field for each of the two thresholds; labels on which they disagree become 255."""
    numbers = np.concatenate([[0], names])
    refined = []
    for threshold in (foreground, background):
        best = np.pad(maps, ((1, 0), (0, 0), (0, 0)), constant_values=threshold).argmax(axis=0)
        refined.append(numbers[refine_label_map(image, best, len(numbers))])
    strict, loose = refined
    labels = np.where(strict == 0, 255, strict)
    labels[(strict == 0) & (loose == 0)] = 0
    return labels.astype(np.uint8)


def two_thresholds(setup: Setup) -> Forms:
    size = TINY if setup.tiny else inputs.VOC_SIZE
    arguments = (inputs.photograph(size, 5), inputs.cams(1, size, 6), np.array([8]), 0.30, 0.05)
    return Forms({"two": partial(two_fields, *arguments)}, partial(labels_by_threshold, *arguments), share_of_pixels, tolerance=1e-4)


def refine_file(path: Path) -> Any:
    """Read an image and its scores, and refine them: what a worker does."""
    image = np.asarray(Image.open(path))
    return crf_soft(image, np.load(path.with_suffix(".npy")), "soft").argmax(axis=0)


class _Unseen:
    """Stands for a stage that shows no progress."""

    def track(self, items: Any, *_: Any) -> Any:
        return items


def many_images(setup: Setup) -> Forms:
    size, count = (TINY, 3) if setup.tiny else (inputs.VOC_SIZE, _IMAGES_PER_CORE * CORES)
    paths = [setup.folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(inputs.photograph(size, number)).save(path)
        np.save(path.with_suffix(".npy"), segmenter_output(size, number)[[0, 8, 15]])

    def run(processes: int) -> np.ndarray:
        return np.stack(list(map_images(refine_file, paths, processes, _Unseen(), "refining")))  # type: ignore[arg-type]

    return Forms({"one": partial(run, 1)}, partial(run, CORES), share_of_pixels, tolerance=0, items=count, wall=True)


HOT_SPOTS = [
    HotSpot(
        "crf-labels",
        "CRF, 375x500, 21 labels, 3 of them there",
        "all labels",
        "labels that are there",
        target=1.5,
        best=1.7,
        agreement="share of pixels with another label",
        make=present_labels,
    ),
    HotSpot(
        "crf-thresholds",
        "confident labels, CRF at 2 thresholds, 375x500",
        "a field for each threshold",
        "one field, two unaries",
        target=1.05,
        best=1.10,
        agreement="share of pixels with another label",
        make=two_thresholds,
    ),
    HotSpot(
        "crf-pool",
        f"CRF, {_IMAGES_PER_CORE * CORES} images, {CORES} cores, wall time",
        "one process",
        f"{CORES} processes, their start included",
        target=0.85 * CORES,
        best=CORES,
        agreement="share of pixels with another label",
        make=many_images,
        default=False,  # takes half a minute, and says nothing unless all cores are idle
    ),
]
