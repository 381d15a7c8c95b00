"""Class scores on their way to masks: bringing them to the image's size, adding the background, reading them in worker processes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from wsss_core.data.images import read_image
from wsss_core.data.index import DataIndex, Record
from wsss_core.errors import UserError
from wsss_core.store import ScoreStore

SCORES, SUMMARY = "scores.h5", "summary.json"
OTSU_RANGE = (0.05, 0.95)


def upsample(scores: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize float32[K, h, w] bilinearly to float32[K, H, W].

    Enlarging equals `torch.nn.functional.interpolate(align_corners=False)` up to rounding, without torch, which workers do not
    load. Scores that have the size already come back as they are.
    """
    height, width = size
    if scores.shape[1:] == (height, width):
        return scores
    resized = np.empty((len(scores), height, width), np.float32)
    for channel, target in zip(scores, resized, strict=True):
        small = Image.fromarray(np.ascontiguousarray(channel, np.float32))
        target[:] = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))
    return resized


def add_background(cams: np.ndarray, background: float | Literal["otsu"] | None, power: float) -> np.ndarray:
    """Put a background channel before class activation maps and make every pixel's scores sum to 1.

    Parameters
    ----------
    cams
        float32[K, H, W], K >= 1, in [0, 1].
    background
        The background's score before normalisation, the same at every pixel: a map above it is foreground (IRN, Puzzle-CAM).
        "otsu" (ours): the same, but each image has its own, see `otsu_background`: no constant fits all classifiers.
        None: (1 - max over classes)^power instead (PSA, Eq. 2).

    Returns
    -------
    float32[K + 1, H, W]: background, then the classes in their order.
    """
    strongest = cams.max(axis=0, keepdims=True)
    if background is None:
        first = (1 - strongest).clip(0, 1) ** np.float32(power)
    else:
        first = np.full_like(strongest, otsu_background(strongest[0]) if background == "otsu" else background)
    scores = np.concatenate([first, cams])
    return scores / scores.sum(axis=0)


def otsu_background(strongest: np.ndarray) -> float:
    """Return the threshold that best parts the values of `strongest`, float32[H, W], in two groups (Otsu, IEEE Trans. SMC 1979).

    It needs no pixel labels. The bounds of `OTSU_RANGE` keep flat maps, which have no two groups, from a background of zero or one.
    """
    from skimage.filters import threshold_otsu

    return float(np.clip(threshold_otsu(strongest), *OTSU_RANGE))


def open_store(path: Path) -> ScoreStore:
    """Return the score store at `path`, opened once per process as long as the file is the same."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return _open_store(path, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _open_store(path: Path, inode: int, changed: int) -> ScoreStore:
    return ScoreStore(path)


def image_places(index: DataIndex, store: ScoreStore) -> list[tuple[str, Path]]:
    """Return (id, path of the image) for every image of the store; raises `UserError` for an id that is not in the index."""
    return [(record.id, index.image_path(record)) for record in records_of(index, store)]


def records_of(index: DataIndex, store: ScoreStore) -> list[Record]:
    """Return the records of the store's images in its order; raises `UserError` for an id that is not in the index."""
    records = {record.id: record for split in index.splits.values() for record in split}
    if not len(store):
        raise UserError(f"{store.path}: holds no image")
    unknown = next((name for name in store.ids if name not in records), None)
    if unknown is not None:
        raise UserError(f"{store.path}: holds the image '{unknown}', which is not in the index of the data set")
    return [records[name] for name in store.ids]


def is_complete(shard: Path, ids: list[str]) -> bool:
    """Whether a shard is there and holds just these images."""
    if not shard.exists():
        return False
    with ScoreStore(shard) as store:
        return store.ids == ids


def read_image_of_size(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Return the image uint8[H, W, 3]; raises `UserError` if it cannot be read or is not of the size its scores were made for."""
    image = read_image(path)
    if image.shape[:2] != tuple(size):
        actual, expected = (f"{width}x{height}" for height, width in (image.shape[:2], size))
        raise UserError(f"{path}: the image is {actual} pixels, its scores are for {expected}; make them again")
    return image
