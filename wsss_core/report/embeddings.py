"""How a classifier sees the images of a split, in two dimensions: t-SNE of their embeddings (MuSCLe, Fig. 5)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsss_core.evaluate.embeddings import read_embeddings

LEAST, MOST = 10, 2000
"""Fewer images have no neighbourhoods worth a picture; of more, this many are drawn by lot, which limits the time."""
_SEED, _PERPLEXITY = 0, 30


@dataclass
class Panel:
    """The images of a split as one classifier places them.

    Attributes
    ----------
    title
        The experiments that have this classifier.
    split
        The images' split.
    classes
        The C-1 foreground classes.
    places
        float32[N, 2]. Only who is near whom means something.
    shown
        int[N], the position in `classes` of the image's only class; -1 of an image with several or none.
    """

    title: str
    split: str
    classes: list[str]
    places: np.ndarray
    shown: np.ndarray


def embedding_panels(records: Sequence[tuple[Path, dict[str, Any]]]) -> list[Panel]:
    """Place the images of each classifier among the records (the path of `experiment.json` and its content).

    Of an experiment its first record counts. Experiments that share their classifier share a panel. What was judged before embeddings
    were kept, or has too few images, is left out.
    """
    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path, record in records:
        first.setdefault(record["name"], (path, record))
    directories = {name: (path.parent / "evaluate-classifier").resolve() for name, (path, _) in first.items()}
    panels = []
    for directory in dict.fromkeys(directories.values()):
        names = [name for name, own in directories.items() if own == directory]
        content, found = first[names[0]][1]["evaluations"].get("classifier"), read_embeddings(directory)
        if content is None or found is None:
            continue
        embeddings, labels = found
        if len(embeddings) < LEAST or not np.isfinite(embeddings).all():
            reason = f"{len(embeddings)} images, {LEAST} are needed" if len(embeddings) < LEAST else "they are not all finite"
            print(f"no picture of the image embeddings of {_listed(names)}: {reason}", file=sys.stderr)
            continue
        kept = np.sort(np.random.default_rng(_SEED).permutation(len(embeddings))[:MOST])
        shown = np.where(labels.sum(axis=1) == 1, labels.argmax(axis=1), -1)[kept]
        classes = list(content["figures"][0]["ap"])
        panels.append(Panel(_listed(names), content["split"], classes, neighbourhoods(embeddings[kept]), shown))
    return panels


def neighbourhoods(embeddings: np.ndarray) -> np.ndarray:
    """Return float32[N, 2], t-SNE of embeddings [N, D], from their principal components and with a fixed seed.

    The paper says no more than "t-SNE". Ours: vectors of length 1, as the image contrast compares directions (Eq. 1); scikit-learn's
    perplexity of 30, less for fewer than 91 images.
    """
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    perplexity = min(_PERPLEXITY, (len(embeddings) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=_SEED).fit_transform(normalize(embeddings.astype(np.float32)))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} others"
