"""The source `folder`: a person's own images with tags, in VOC's layout or as a directory of images and a CSV."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wsss_core.config.datasets import Folder
from wsss_core.data.index import DataIndex, Record
from wsss_core.data.labels import BACKGROUND, Origin, check_classes, class_numbers, describe, read_classes, read_labels
from wsss_core.data.listing import Checksum, Entries, Track, below_root, existing_directory, name_of, read_list, scan
from wsss_core.errors import UserError

_CSVS = ("image_labels.csv", "labels.csv", "tags.csv")
_ANNOTATIONS = "Annotations"


@dataclass(frozen=True)
class Layout:
    """Where things are below the root, after all `auto` are decided."""

    root: Path
    images: str
    masks: str | None
    labels: Origin
    classes: Path | None
    lists: dict[str, Path]

    def scan_images(self) -> Entries:
        """Return all images by id."""
        skip = [self.root / self.masks] if self.masks else []
        return scan(self.root / self.images, skip=skip)

    def scan_masks(self) -> Entries:
        """Return all masks by the id of their image."""
        return scan(self.root / self.masks, (".png",)) if self.masks else {}


def build_index(dataset: Folder, prepared: Path, track: Track) -> DataIndex:
    """Index a directory of images; nothing is copied or converted.

    Raises
    ------
    UserError
        Naming the file and what was expected, if an image, list, label or class is missing or wrong.
    """
    layout = find_layout(dataset)
    images, masks = layout.scan_images(), layout.scan_masks()
    splits = split_ids(dataset, layout, images)
    classes = read_classes(layout.classes) if layout.classes else None
    table = read_labels(
        layout.labels,
        splits,
        annotations=layout.root / _ANNOTATIONS,
        masks={identifier: Path(entry.path) for identifier, entry in masks.items()},
        classes=classes,
        track=track,
    )
    if classes is None:
        classes = (BACKGROUND, *table.names)
        check_classes(classes, describe(layout.labels))
    else:
        class_numbers(table.names, classes, describe(layout.labels))  # a misspelt column is an error even if it is all zeros

    def record(identifier: str) -> Record:
        image = (PurePosixPath(layout.images) / name_of(identifier, images[identifier])).as_posix()
        mask = f"{layout.masks}/{name_of(identifier, masks[identifier])}" if identifier in masks else None
        where = f"{describe(layout.labels)}: {identifier}"
        return Record(identifier, image, class_numbers(table.rows[identifier], classes, where), mask)

    records = {name: tuple(record(identifier) for identifier in ids) for name, ids in splits.items()}
    return DataIndex(classes, records, describe(layout.labels), layout.root, prepared)


def add_checksums(dataset: Folder, images: Checksum, masks: Checksum) -> None:
    """Add what the index is made from to `images` and the masks' content to `masks`; decodes nothing."""
    layout = find_layout(dataset)
    there, true_masks = layout.scan_images(), layout.scan_masks()
    ids = [identifier for split in split_ids(dataset, layout, there).values() for identifier in split]
    images.add_entries("image", there, ids)
    for name, path in layout.lists.items():
        images.add_file(f"list {name}", path)
    if layout.classes:
        images.add_file("classes", layout.classes)
    if isinstance(layout.labels, Path):
        images.add_file("labels", layout.labels)
    elif layout.labels == "xml":
        images.add_entries("xml", scan(layout.root / _ANNOTATIONS, (".xml",)), ids)
    else:
        images.add_entries("mask labels", true_masks, ids)
    # The index says which images have a mask, so masks that appear or vanish make a new index; changed ones do not.
    images.add_names("masks", true_masks.keys() & set(ids))
    masks.add_entries("mask", true_masks, ids)


def find_layout(dataset: Folder) -> Layout:
    """Decide what `auto` and unset keys mean; raises `UserError` naming the key whose file is not there."""
    root = existing_directory(dataset.root, "dataset.root")
    masks = _directory(root, dataset.masks, ("SegmentationClass", "masks"), "masks")
    images = _directory(root, dataset.images, ("JPEGImages", "images"), "images") or "."
    return Layout(root, images, masks, _find_labels(dataset, root), _find_classes(dataset, root), _find_lists(dataset, root))


def _directory(root: Path, given: str | None, usual: tuple[str, ...], key: str) -> str | None:
    if given is None:
        return next((name for name in usual if (root / name).is_dir()), None)
    name = "." if given in (".", "./") else below_root(given, f"dataset.{key}")
    existing_directory(root / name, f"dataset.{key}")
    return name


def _find_labels(dataset: Folder, root: Path) -> Origin:
    if dataset.labels == "masks":
        return "masks"
    if dataset.labels == "auto":
        csv = next((root / name for name in _CSVS if (root / name).is_file()), None)
        if csv:
            return csv
        if not (root / _ANNOTATIONS).is_dir():
            raise UserError(f"{root}: no image-level labels: expected {', '.join(_CSVS)} or {_ANNOTATIONS}/*.xml (dataset.labels)")
        return "xml"
    if dataset.labels == "xml":
        existing_directory(root / _ANNOTATIONS, "dataset.labels: xml")
        return "xml"
    return _file(root, dataset.labels, "labels")


def _find_classes(dataset: Folder, root: Path) -> Path | None:
    if dataset.classes == "auto":
        return root / "classes.txt" if (root / "classes.txt").is_file() else None
    return _file(root, dataset.classes, "classes")


def _find_lists(dataset: Folder, root: Path) -> dict[str, Path]:
    if dataset.splits == "auto":
        usual = (root / "ImageSets" / "Segmentation", root / "splits")
        directory = next((path for path in usual if (path / "train.txt").is_file() or (path / "val.txt").is_file()), None)
        if directory is None:
            return {}
    else:
        directory = existing_directory(root / dataset.splits, "dataset.splits")
    optional = ["test"] if (directory / "test.txt").is_file() else []
    return {name: _file(directory, f"{name}.txt", "splits") for name in ("train", "val", *optional)}


def _file(directory: Path, name: str, key: str) -> Path:
    path = directory / Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file (dataset.{key})")
    return path


def split_ids(dataset: Folder, layout: Layout, images: Entries) -> dict[str, tuple[str, ...]]:
    """Return the image ids of each split: those of the lists or, without lists, a split drawn by a hash of the names.

    Without lists the `val_fraction` of the images whose names have the smallest hashes is held out (at least one image, and
    not all): an image that is added later moves one other image at most.
    """
    if layout.lists:
        splits = {name: read_list(path) for name, path in layout.lists.items()}
        for name, ids in splits.items():
            for identifier in ids:
                if identifier not in images:
                    raise UserError(f"{layout.lists[name]}: no image '{identifier}' in {layout.root / layout.images}")
        return splits
    if not images:
        raise UserError(f"{layout.root / layout.images}: holds no images (dataset.images)")
    order = sorted(images, key=lambda identifier: hashlib.sha256(identifier.encode(errors="surrogateescape")).digest())
    count = round(dataset.val_fraction * len(order))
    if 0 < dataset.val_fraction < 1 and len(order) > 1:
        count = min(max(count, 1), len(order) - 1)
    return {"train": tuple(sorted(order[count:])), "val": tuple(sorted(order[:count]))}
