"""The true masks. Only `evaluate`, the report's gallery, the data check and the fully supervised upper bound import this.

Weak supervision that reads pixel masks anywhere else (in training, model selection, a schedule, a threshold) is the
field's commonest dishonesty; a test holds the list of importers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsss_core.data.images import read_mask
from wsss_core.data.index import DataIndex, Record
from wsss_core.errors import UserError


def mask_path(index: DataIndex, record: Record) -> Path:
    """Return the place of the true mask; raises `UserError` if the data set has none for this image."""
    if record.mask is None:
        raise UserError(f"{index.image_path(record)}: has no mask; evaluation and the upper bound need one per image")
    return index.resolve(record.mask)


def read_truth(index: DataIndex, record: Record, size: tuple[int, int] | None = None) -> np.ndarray:
    """Return the true mask as uint8[H, W]: 0 background, 1..C-1 classes, 255 ignore.

    Raises `UserError` if the mask is missing, unreadable, holds a label out of range, or is not of `size` (H, W).
    """
    path = mask_path(index, record)
    mask = read_mask(path, num_classes=index.num_classes)
    if size is not None and mask.shape != tuple(size):
        raise UserError(f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, its image {size[1]}x{size[0]}")
    return mask
