"""The data check: what is wrong with a data set before hours are spent on it, and its statistics in tables."""

from __future__ import annotations

import hashlib
import multiprocessing
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import track as rich_track
from rich.table import Table
from rich.text import Text

from wsss_core.config.datasets import Dataset
from wsss_core.data.images import image_size, read_image
from wsss_core.data.index import DataIndex, Record
from wsss_core.data.sources import build_index
from wsss_core.data.truth import read_truth
from wsss_core.errors import UserError

_WIDEST_MATRIX = 16
_PAIRS = 20
Item = TypeVar("Item")


@dataclass(frozen=True)
class Statistics:
    """Figures of a data set.

    Attributes
    ----------
    classes
        Names of the C-1 foreground classes.
    label_source
        Where the image-level labels come from.
    images, masks, without_object
        Number of images, of images with a mask and of images without any label, by split.
    per_class
        int64[C-1] by split: images with each class.
    together
        int64[C-1, C-1]: images of train with both classes; the diagonal counts the images with the class.
    sizes
        int64[3, 2] by split: smallest, median and largest width and height in pixels of the images that can be read.
    """

    classes: tuple[str, ...]
    label_source: str
    images: dict[str, int]
    masks: dict[str, int]
    without_object: dict[str, int]
    per_class: dict[str, np.ndarray]
    together: np.ndarray
    sizes: dict[str, np.ndarray]


def check_dataset(dataset: Dataset, workers: int, out: Path | None = None) -> int:
    """Index a data set, print what is wrong with it (one line each) and its statistics; return the number of problems.

    `out` keeps what was made or converted; unset: a temporary directory.
    """
    console = Console()
    with tempfile.TemporaryDirectory(prefix="wsss-data-") as temporary:
        try:
            index = build_index(dataset, Path(out or temporary), _track)
        except UserError as error:
            _print_lines(console, [f"{dataset.name}: 1 problem, which hides all others", str(error)])
            return 1
        problems = check(index, workers)
        total = sum(len(records) for records in index.splits.values())
        found = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}" if problems else "no problems"
        _print_lines(console, [f"{dataset.name}: {total} images, {index.num_classes - 1} object classes, {found}", *problems])
        print_statistics(statistics(index), console)
    return len(problems)


def check(index: DataIndex, workers: int = 0) -> list[str]:
    """Return the problems of a data set, one line each, in a fixed order.

    Every image and mask is decoded, in `workers` processes (0: in this one). Found are missing and damaged images, masks
    that are missing on some images of a split, damaged, of another size than their image or with unknown labels, empty
    splits, images (by id or by content) in two splits, and classes without a training image.
    """
    problems = []
    for split in dict.fromkeys(("train", "val", *index.splits)):
        records = index.splits.get(split, ())
        without = [record for record in records if record.mask is None]
        if not records:
            problems.append(f"{split}: the split is empty")
        elif 0 < len(without) < len(records):
            problems.append(f"{split}: {len(without)} of {len(records)} images have no mask, the first is {index.image_path(without[0])}")
    labelled = {label for record in index.splits.get("train", ()) for label in record.labels}
    problems += [
        f"{name}: no training image has this class" for number, name in enumerate(index.classes) if number and number not in labelled
    ]
    return problems + _check_images(index, workers)


def _check_images(index: DataIndex, workers: int) -> list[str]:
    problems = []
    tasks = [(split, record) for split, records in index.splits.items() for record in records]
    by_id: dict[str, str] = {}
    by_content: dict[str, tuple[str, Record]] = {}
    for (split, record), (digest, found) in zip(tasks, _inspect_all(index, [record for _, record in tasks], workers), strict=True):
        problems += found
        other = by_id.setdefault(record.id, split)
        first_split, first = by_content.setdefault(digest, (split, record))
        if other != split:
            problems.append(f"{index.image_path(record)}: is in both {other} and {split}")
        elif digest and first_split != split:
            problems.append(f"{index.image_path(record)}: of {split}, is the same file as {index.image_path(first)} of {first_split}")
    return list(dict.fromkeys(problems))


def _inspect_all(index: DataIndex, records: list[Record], workers: int) -> Iterator[tuple[str, list[str]]]:
    inspect = partial(_inspect, replace(index, splits={}))  # the records travel one by one, not with every task
    if workers == 0:
        yield from _track(map(inspect, records), "decoding images", len(records))
        return
    # Not forked: a progress bar's thread may hold a lock at that moment.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from _track(pool.map(inspect, records, chunksize=16), "decoding images", len(records))


def _inspect(index: DataIndex, record: Record) -> tuple[str, list[str]]:
    """Decode an image and its mask: return the digest of the image file ("" if unreadable) and the problems."""
    problems = []
    digest, size = "", None
    path = index.image_path(record)
    try:
        size = read_image(path).shape[:2]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except UserError as error:
        problems.append(str(error))
    if record.mask is not None:
        try:
            read_truth(index, record, size)
        except UserError as error:
            problems.append(str(error))
    return digest, problems


def statistics(index: DataIndex) -> Statistics:
    """Return the figures of a data set; of the images only the headers are read."""
    labels = {
        split: np.array([index.multi_hot(record) for record in records], dtype=np.int64).reshape(-1, index.num_classes - 1)
        for split, records in index.splits.items()
    }
    train = labels.get("train", np.zeros((0, index.num_classes - 1), dtype=np.int64))
    sizes = {}
    for split, records in index.splits.items():
        known = [size for record in _track(records, f"sizes of {split}", len(records)) if (size := _size(index.image_path(record)))]
        if known:
            sizes[split] = np.stack([np.min(known, axis=0), np.median(known, axis=0), np.max(known, axis=0)]).astype(np.int64)
    return Statistics(
        classes=index.classes[1:],
        label_source=index.label_source,
        images={split: len(records) for split, records in index.splits.items()},
        masks={split: sum(record.mask is not None for record in records) for split, records in index.splits.items()},
        without_object={split: sum(not record.labels for record in records) for split, records in index.splits.items()},
        per_class={split: hot.sum(axis=0) for split, hot in labels.items()},
        together=train.T @ train,
        sizes=sizes,
    )


def _size(path: Path) -> tuple[int, int] | None:
    """Return (width, height), None if the file cannot be read (which is `check`'s to say)."""
    try:
        return image_size(path)
    except (OSError, SyntaxError, ValueError):
        return None


def print_statistics(values: Statistics, console: Console | None = None) -> None:
    """Print tables: splits, images per class, classes that are in one image together."""
    console = console or Console()
    table = _table("split")
    for heading in ("images", "with mask", "without object", "width", "height"):
        table.add_column(heading, justify="right")
    for split, count in values.images.items():
        ranges = [", ".join(map(str, column)) for column in values.sizes[split].T] if split in values.sizes else ["", ""]
        table.add_row(Text(split), str(count), str(values.masks[split]), str(values.without_object[split]), *ranges)
    _print_lines(console, ["", f"Images (labels: {values.label_source}; width and height: smallest, median, largest, in pixels)"])
    console.print(table)

    table = _table("class")
    for split in values.images:
        table.add_column(split, justify="right")
    for number, name in enumerate(values.classes):
        table.add_row(Text(name), *(str(counts[number]) for counts in values.per_class.values()))
    _print_lines(console, ["Images per class"])
    console.print(table)
    if len(values.classes) <= _WIDEST_MATRIX:
        _print_lines(console, ["Training images with both classes"])
        console.print(_matrix(values))
    else:
        _print_lines(console, [f"The {_PAIRS} most frequent pairs of classes in training images"])
        console.print(_pairs(values))


def _table(first_column: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first_column, no_wrap=True)
    return table


def _matrix(values: Statistics) -> Table:
    table = _table("")
    for number in range(len(values.classes)):
        table.add_column(str(number + 1), justify="right")
    for number, (name, row) in enumerate(zip(values.classes, values.together, strict=True), start=1):
        table.add_row(Text(f"{number} {name}"), *(str(count) if count else "." for count in row))
    return table


def _pairs(values: Statistics) -> Table:
    table = _table("classes")
    for heading in ("images", "share of the first", "share of the second"):
        table.add_column(heading, justify="right")
    first, second = np.triu_indices(len(values.classes), k=1)
    counts, single = values.together[first, second], np.diag(values.together)
    for pair in np.argsort(-counts, kind="stable")[:_PAIRS]:
        a, b, count = first[pair], second[pair], counts[pair]
        if count:
            shares = (f"{count / single[end]:.0%}" for end in (a, b))
            table.add_row(Text(f"{values.classes[a]}, {values.classes[b]}"), str(count), *shares)
    return table


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress bar, if somebody looks at the terminal."""
    if not sys.stderr.isatty():
        return iter(items)
    return iter(rich_track(items, description=what, total=total, console=Console(stderr=True), transient=True))
