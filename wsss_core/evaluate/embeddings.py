"""Image embeddings of a classifier: two files that its evaluation leaves beside its figures, and from which they are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsss_core.stage import Stage

EMBEDDINGS, LABELS = "embeddings.npy", "labels.npy"


def write_embeddings(stage: Stage, embeddings: np.ndarray, labels: np.ndarray) -> None:
    """Write embeddings float[N, D] as float16 and image-level labels [N, C-1], 0 or 1, as bool."""
    for name, values in ((EMBEDDINGS, embeddings.astype(np.float16)), (LABELS, labels.astype(bool))):
        with stage.write(name) as path, open(path, "wb") as file:
            np.save(file, values, allow_pickle=False)


def read_embeddings(directory: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the embeddings float16[N, D] and labels bool[N, C-1] in the directory of an evaluation, None where it has none."""
    if not (directory / EMBEDDINGS).is_file():
        return None
    return np.load(directory / EMBEDDINGS, allow_pickle=False), np.load(directory / LABELS, allow_pickle=False)
