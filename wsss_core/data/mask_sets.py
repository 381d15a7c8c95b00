"""The masks of many images: a folder of indexed PNGs, or one zip archive of them.

An archive is one file where a folder would be ten thousand; any tool can open it. Its bytes follow from the masks alone.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from wsss_core.data.images import decode_mask, read_mask
from wsss_core.errors import UserError
from wsss_core.files import atomic_path


def pack_masks(folder: Path, ids: Iterable[str], archive: Path) -> None:
    """Write `<id>.png` of a folder, for each id, into one archive."""
    with atomic_path(archive) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for image_id in ids:
            name = f"{image_id}.png"
            packed.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())  # a PNG is compressed already


def round_archive(training: Path, epoch: int) -> Path:
    """Place of the pseudo labels that a training made itself after `epoch` epochs, below its own directory."""
    return training / "rounds" / f"epoch-{epoch:04d}.zip"


def read_mask_of(place: Path, image_id: str, num_classes: int | None = None) -> np.ndarray:
    """Return the mask uint8[H, W] of an image from a folder or an archive (`.zip`); errors as `data.images.read_mask`."""
    if place.suffix != ".zip":
        return read_mask(place / f"{image_id}.png", num_classes)
    name = f"{image_id}.png"
    try:
        status = place.stat()
        packed = _open(place, os.getpid(), status.st_ino, status.st_mtime_ns)
        with packed.open(name) as file:
            return decode_mask(file, f"{place}, {name}", num_classes)  # type: ignore[arg-type]
    except KeyError:
        raise UserError(f"{place}: holds no mask of the image '{image_id}'") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{place}: not a readable archive of masks ({error})") from None


@lru_cache(maxsize=2)
def _open(archive: Path, process: int, inode: int, changed: int) -> zipfile.ZipFile:
    """Open an archive once per process, as long as it is the same file: a handle that a fork has copied would share its place in the file."""
    return zipfile.ZipFile(archive)
