"""A dense CRF on a segmenter's probabilities, image by image or in processes; free of torch, which workers do not load."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from wsss_core.data.images import save_mask
from wsss_core.files import atomic_path
from wsss_core.processes import map_images
from wsss_core.refine.crf import crf_soft
from wsss_core.refine.scores import open_store, read_image_of_size
from wsss_core.stage import Stage

# A class that wins no pixel and stays below this everywhere is left out of the CRF, whose cost is the number of labels.
_PRESENT = 0.05


def present_classes(probabilities: np.ndarray) -> np.ndarray:
    """Return the class numbers int[K], ascending, that reach 5 % or are the best somewhere in float[C, H, W]."""
    flat = probabilities.reshape(len(probabilities), -1)
    return np.union1d(np.flatnonzero(flat.max(axis=1) >= _PRESENT), flat.argmax(axis=0))


def refine_probabilities(image: np.ndarray, probabilities: np.ndarray, preset: str) -> np.ndarray:
    """Return class numbers uint8[H, W] of an image uint8[H, W, 3] and probabilities float32[C, H, W] after a dense CRF."""
    present = present_classes(probabilities)
    return present[crf_soft(image, probabilities[present], preset).argmax(axis=0)].astype(np.uint8)


def refine_predictions(stage: Stage, scores: Path, preset: str, places: Sequence[tuple[str, Path]], folder: Path) -> None:
    """Write `folder/<id>.png` for each (id, image) of `places`, from the probabilities in a score store; `stage.threads` processes."""
    function = partial(_refine, scores, preset, folder)
    for _ in map_images(function, places, stage.threads, stage, "refining predictions"):
        pass


def _refine(scores: Path, preset: str, folder: Path, item: tuple[str, Path]) -> None:
    image_id, path = item
    store = open_store(scores)
    probabilities, classes = store.read(image_id)
    refined = crf_soft(read_image_of_size(path, store.size(image_id)), probabilities, preset)
    with atomic_path(folder / f"{image_id}.png") as temporary:
        save_mask(temporary, classes[refined.argmax(axis=0)].astype(np.uint8))
