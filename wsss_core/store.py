"""The HDF5 score store: per image a ragged stack of class scores (CAMs, refined scores, probabilities).

One file holds flat arrays and an index, so that reading an image is one slice:

``data``      all scores, image after image; float16, or uint8 (value/255), or zlib-compressed bytes of either
``offset``    int64[N+1], where each image's part of `data` begins
``shape``     int32[N, 3], (K, h, w) of each stack
``size``      int32[N, 2], (H, W) of the image in pixels
``classes``   int32, the class number of each channel, image after image; ``class_offset`` int64[N+1]
``ids``       the images' ids
``extra/<x>`` further per-image values, float32[N, ...] (for instance the classifier's scores)

Attributes: `num_classes`, `dtype`, `compressed`, `version`. Class number 0 is the background channel, where there is one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal

import h5py
import numpy as np

from wsss_core.errors import UserError
from wsss_core.files import atomic_path

VERSION = 1
StoreType = Literal["float16", "uint8"]


class ScoreStore:
    """A score store opened for reading; a context manager.

    Parameters
    ----------
    path
        The HDF5 file. Raises `UserError` if it is missing or no score store.

    Examples
    --------
    >>> with ScoreStore(path) as store:               # doctest: +SKIP
    ...     scores, classes = store.read("2007_000032")
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise UserError(f"{self.path}: not a readable score store ({error})") from None
        if self._file.attrs.get("version") != VERSION:
            self._file.close()
            raise UserError(f"{self.path}: not a score store of version {VERSION}")
        self.num_classes = int(self._file.attrs["num_classes"])
        self.dtype = np.dtype(self._file.attrs["dtype"])
        self.compressed = bool(self._file.attrs["compressed"])
        self.ids: list[str] = [name.decode() for name in self._file["ids"][:]]
        self._offset, self._shape, self._size = (self._file[name][:] for name in ("offset", "shape", "size"))
        self._classes, self._class_offset = self._file["classes"][:], self._file["class_offset"][:]
        self._position = {name: i for i, name in enumerate(self.ids)}
        data = self._file["data"]
        place = data.id.get_offset()  # contiguous and unfiltered: mapping it reads 10 times faster than slicing through HDF5
        self._data = np.memmap(self.path, data.dtype, "r", place, data.shape) if place is not None else data[:]

    def __enter__(self) -> ScoreStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._position

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for image_id in self.ids:
            yield (image_id, *self.read(image_id))

    def read(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        """Return an image's scores float32[K, h, w] and their class numbers int32[K]; raises `UserError` for an unknown id."""
        i = self._find(image_id)
        begin, end = self._offset[i], self._offset[i + 1]
        part = self._data[begin:end]
        if self.compressed:
            part = np.frombuffer(zlib.decompress(part.tobytes()), self.dtype)
        scores = part.reshape(self._shape[i]).astype(np.float32)
        if self.dtype == np.uint8:
            scores *= np.float32(1 / 255)
        return scores, self.classes(image_id)

    def classes(self, image_id: str) -> np.ndarray:
        """Return the class numbers int32[K] of an image's channels, without reading its scores."""
        i = self._find(image_id)
        return self._classes[self._class_offset[i] : self._class_offset[i + 1]]

    def size(self, image_id: str) -> tuple[int, int]:
        """Return the image's (H, W) in pixels."""
        height, width = self._size[self._find(image_id)]
        return int(height), int(width)

    def extra(self, name: str) -> np.ndarray:
        """Return further per-image values, float32[N, ...] in the order of `ids`; raises KeyError if there are none."""
        return np.asarray(self._file["extra"][name][:])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _find(self, image_id: str) -> int:
        try:
            return self._position[image_id]
        except KeyError:
            raise UserError(f"{self.path}: holds no scores of the image '{image_id}'") from None


class ScoreWriter:
    """Collects scores and writes them as one store when the block ends well; nothing appears otherwise.

    Parameters
    ----------
    path
        The HDF5 file to make.
    num_classes
        C, background included.
    dtype
        `float16` for unbounded scores, `uint8` for scores in [0, 1] where steps of 1/255 are enough.
    compress
        Compress each image's scores (zlib); worth it for saturated probabilities at full resolution.
    """

    def __init__(self, path: str | Path, num_classes: int, *, dtype: StoreType = "float16", compress: bool = False) -> None:
        self.path, self.num_classes, self.dtype, self.compress = Path(path), num_classes, np.dtype(dtype), compress
        self._parts: list[np.ndarray] = []
        self._rows: list[tuple[str, tuple[int, ...], tuple[int, int], np.ndarray]] = []
        self._extra: dict[str, list[np.ndarray]] = {}

    def __enter__(self) -> ScoreWriter:
        return self

    def add(self, image_id: str, scores: np.ndarray, classes: np.ndarray, size: tuple[int, int], **extra: np.ndarray) -> None:
        """Add one image: scores [K, h, w], class numbers [K], the image's (H, W), and further values by name."""
        if scores.ndim != 3 or len(classes) != scores.shape[0]:
            raise ValueError(f"expected scores [K, h, w] and K classes, got {scores.shape} and {len(classes)}")
        packed = np.rint(np.clip(scores, 0, 1) * 255).astype(np.uint8) if self.dtype == np.uint8 else scores.astype(self.dtype)
        flat = np.ascontiguousarray(packed).reshape(-1)
        if self.compress:
            flat = np.frombuffer(zlib.compress(flat.tobytes(), level=1), np.uint8)
        self._parts.append(flat)
        self._rows.append((image_id, scores.shape, size, np.asarray(classes, np.int32)))
        for name, value in extra.items():
            self._extra.setdefault(name, []).append(np.asarray(value, np.float32))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._write()

    def _write(self) -> None:
        ids, shapes, sizes, classes = zip(*self._rows, strict=True) if self._rows else ((), (), (), ())
        lengths = [len(part) for part in self._parts]
        with atomic_path(self.path) as temporary, h5py.File(temporary, "w", libver="latest") as file:
            data = file.create_dataset("data", (sum(lengths),), np.uint8 if self.compress else self.dtype)
            offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            for part, begin in zip(self._parts, offset, strict=False):
                data[begin : begin + len(part)] = part
            file["offset"] = offset
            file["shape"] = np.array(shapes, np.int32).reshape(-1, 3)
            file["size"] = np.array(sizes, np.int32).reshape(-1, 2)
            file["classes"] = np.concatenate(classes) if classes else np.zeros(0, np.int32)
            file["class_offset"] = np.concatenate([[0], np.cumsum([len(c) for c in classes])]).astype(np.int64)
            file["ids"] = np.array([name.encode() for name in ids], dtype=h5py.string_dtype())
            _write_extra(file, {name: np.stack(values) for name, values in self._extra.items()})
            file.attrs.update(version=VERSION, num_classes=self.num_classes, dtype=str(self.dtype), compressed=self.compress)


def join_stores(shards: list[Path], path: Path) -> None:
    """Write one store holding the images of all shards, in their order; the scores are copied as stored."""
    stores = [ScoreStore(shard) for shard in shards]
    try:
        first = stores[0]
        lengths = [store._data.shape[0] for store in stores]
        with atomic_path(path) as temporary, h5py.File(temporary, "w", libver="latest") as file:
            data = file.create_dataset("data", (sum(lengths),), first._data.dtype)
            begin = 0
            for store, length in zip(stores, lengths, strict=True):
                data[begin : begin + length] = store._data
                begin += length
            for name, ends in (("offset", [s._offset for s in stores]), ("class_offset", [s._class_offset for s in stores])):
                file[name] = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(o) for o in ends]))]).astype(np.int64)
            file["shape"] = np.concatenate([s._shape for s in stores])
            file["size"] = np.concatenate([s._size for s in stores])
            file["classes"] = np.concatenate([s._classes for s in stores])
            file["ids"] = np.array([name.encode() for s in stores for name in s.ids], dtype=h5py.string_dtype())
            _write_extra(file, {name: np.concatenate([s.extra(name) for s in stores]) for name in first._file.get("extra", {})})
            file.attrs.update(dict(first._file.attrs))
    finally:
        for store in stores:
            store.close()


def _write_extra(file: h5py.File, values: dict[str, np.ndarray]) -> None:
    if values:
        group = file.create_group("extra")  # a group made in passing would carry the time of day: other bytes at each run
        for name, array in values.items():
            group[name] = array


def shard_ranges(count: int, size: int) -> list[tuple[int, int]]:
    """Cut `count` images into consecutive (begin, end) ranges of at most `size`."""
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]
