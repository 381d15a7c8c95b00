"""Reading scores: one HDF5 store against a pickled dictionary per image."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import inputs
from benchmarks.harness import Forms, HotSpot, Setup
from wsss_core.store import ScoreStore, ScoreWriter

Scores = list[tuple[np.ndarray, np.ndarray]]


def read_dictionaries(folder: Path, names: list[str]) -> Scores:
    """The published form (IRN): `np.load` of a pickled dictionary, of which the maps at stride 4 are wanted."""
    found = []
    for name in names:
        entry = np.load(folder / f"{name}.npy", allow_pickle=True).item()
        found.append((entry["cam"].numpy(), entry["keys"].numpy()))
    return found


def read_store(store: ScoreStore, names: list[str]) -> Scores:
    return [store.read(name) for name in names]


def difference(expected: Scores, ours: Scores) -> float:
    if any(not np.array_equal(a[1], b[1]) or a[0].shape != b[0].shape for a, b in zip(expected, ours, strict=True)):
        return np.nan
    return max(float(np.abs(a[0] - b[0]).max()) for a, b in zip(expected, ours, strict=True))


def reading(setup: Setup) -> Forms:
    count, size = (5, (6, 8)) if setup.tiny else (200, (94, 125))
    rng = np.random.default_rng(5)
    names = [f"2007_{number:06d}" for number in range(count)]
    with ScoreWriter(setup.folder / "scores.h5", 21) as writer:
        for number, name in enumerate(names):
            present = rng.choice([1, 2, 3], p=[0.63, 0.29, 0.08])  # about as in VOC
            classes = np.sort(rng.permutation(np.arange(1, 21))[:present])
            cam = inputs.cams(len(classes), size, number)
            full = np.repeat(np.repeat(cam, 4, axis=1), 4, axis=2)
            entry = {"keys": torch.from_numpy(classes), "cam": torch.from_numpy(cam), "high_res": full}
            np.save(setup.folder / f"{name}.npy", entry, allow_pickle=True)  # type: ignore[arg-type]
            writer.add(name, cam, classes, (4 * size[0], 4 * size[1]))
    order = list(rng.permutation(names))
    store = ScoreStore(setup.folder / "scores.h5")
    return Forms(
        {"dictionaries": partial(read_dictionaries, setup.folder, order)},
        partial(read_store, store, order),
        difference,
        tolerance=2**-11,  # half a step of float16 below 1
        items=count,
    )


HOT_SPOTS = [
    HotSpot(
        "store-read",
        "score store, 1 to 3 maps of 94x125, warm cache",
        "pickled dict per image, as IRN: maps of both sizes",
        "one HDF5 file, float16, stride 4 alone",
        target=8,
        best=13.8,
        agreement="greatest difference of scores in [0, 1]",
        make=reading,
    )
]
