"""The source `voc12`: PASCAL VOC 2012, with SBD's annotations for the 10,582 images of `trainaug`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsss_core.config.datasets import Voc12
from wsss_core.data.images import IGNORE
from wsss_core.data.index import DataIndex, Record
from wsss_core.data.labels import Origin, class_numbers, describe, read_labels
from wsss_core.data.listing import Checksum, Entries, Track, convert_masks, existing_directory, name_of, read_list, require, scan
from wsss_core.errors import UserError

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_IMAGES, _XML, _MASKS, _AUGMENTED = "JPEGImages", "Annotations", "SegmentationClass", "SegmentationClassAug"


def build_index(dataset: Voc12, prepared: Path, track: Track) -> DataIndex:
    """Index VOC 2012, and convert the SBD masks it needs to `prepared/masks`.

    An image's mask is VOC's own if there is one; else SBD's (`dataset.sbd`), else the one in `SegmentationClassAug`.

    Raises
    ------
    UserError
        Naming the file and what was expected, if an image, list, annotation or SBD file is missing or wrong.
    """
    root = existing_directory(dataset.root, "dataset.root")
    lists = split_lists(dataset, root)
    splits = split_ids(dataset, root, lists)
    images = scan(existing_directory(root / _IMAGES, "dataset.root"), (".jpg",))
    for name, ids in splits.items():
        require(ids, images, root / _IMAGES, ".jpg", f"the split '{name}'")
    masks = _find_masks(dataset, root, prepared, splits, track)
    resolve = DataIndex(CLASSES, {}, "", root, prepared).resolve
    places = {identifier: resolve(mask) for identifier, mask in masks.items()}
    origin = _label_origin(dataset, root)
    table = read_labels(origin, splits, annotations=root / _XML, masks=places, classes=CLASSES, track=track)
    records = {
        name: tuple(
            Record(
                id=identifier,
                image=f"{_IMAGES}/{name_of(identifier, images[identifier])}",
                labels=class_numbers(table.rows[identifier], CLASSES, f"{describe(origin)}: {identifier}"),
                mask=masks.get(identifier),
            )
            for identifier in ids
        )
        for name, ids in splits.items()
    }
    return DataIndex(CLASSES, records, describe(origin), root, prepared)


def add_checksums(dataset: Voc12, images: Checksum, masks: Checksum) -> None:
    """Add what the data stage reads (SBD's files too, which it converts) to `images`, and VOC's masks to `masks`."""
    root = existing_directory(dataset.root, "dataset.root")
    lists = split_lists(dataset, root)
    splits = split_ids(dataset, root, lists)
    ids = {identifier for split in splits.values() for identifier in split}
    for name, path in lists.items():
        images.add_file(f"list {name}", path)
    images.add_entries("image", scan(existing_directory(root / _IMAGES, "dataset.root"), (".jpg",)), ids)
    origin = _label_origin(dataset, root)
    if isinstance(origin, Path):
        images.add_file("labels", origin)
    elif origin == "xml":
        images.add_entries("xml", scan(existing_directory(root / _XML, "dataset.labels: xml"), (".xml",)), ids)
    own, augmented = _masks_in(root / _MASKS), _masks_in(root / _AUGMENTED)
    for role, there in (("own", own), ("augmented", augmented)):
        images.add_names(f"masks {role}", there.keys() & ids)
        masks.add_entries(f"mask {role}", there, ids)
        if origin == "masks":
            images.add_entries(f"mask labels {role}", there, ids)
    if dataset.sbd:
        images.add_entries("sbd", scan(_sbd_directory(dataset) / "cls", (".mat",)), ids - own.keys())


def split_lists(dataset: Voc12, root: Path) -> dict[str, Path]:
    """Return the list files that the splits are made of; raises `UserError` if `trainaug` can neither be read nor derived."""
    directory = existing_directory(root / "ImageSets" / "Segmentation", "dataset.root")
    lists = {"val": directory / "val.txt"}
    if (directory / "test.txt").is_file():
        lists["test"] = directory / "test.txt"
    if dataset.train_split == "trainaug" and (directory / "trainaug.txt").is_file():
        return {"train": directory / "trainaug.txt", **lists}
    lists = {"train": directory / "train.txt", **lists}
    if dataset.train_split == "trainaug":
        if not dataset.sbd:
            raise UserError(f"{directory / 'trainaug.txt'}: no such file; expected it or dataset.sbd (or dataset.train_split: train)")
        lists |= {f"sbd {name}": _sbd_directory(dataset) / f"{name}.txt" for name in ("train", "val")}
    return lists


def split_ids(dataset: Voc12, root: Path, lists: dict[str, Path]) -> dict[str, tuple[str, ...]]:
    """Return the image ids of each split.

    Without a list of its own, trainaug = (SBD train + SBD val - VOC val) + VOC train: 10,582 images, none of val.
    """
    ids = {name: read_list(path) for name, path in lists.items()}
    if "sbd train" in ids:
        sbd = set(ids.pop("sbd train")) | set(ids.pop("sbd val"))
        ids["train"] = tuple(sorted((sbd - set(ids["val"])) | set(ids["train"])))
    return ids


def read_sbd_mask(path: Path) -> np.ndarray:
    """Return `GTcls.Segmentation` of an SBD file as uint8[H, W] in 0..20; raises `UserError` if it is not such a file."""
    from scipy.io import loadmat  # type: ignore[import-untyped]  # here, because the plan imports this module and must be quick

    try:
        mask = np.asarray(loadmat(path, variable_names=["GTcls"])["GTcls"][0, 0]["Segmentation"])
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # scipy raises whatever the damage leads to
        raise UserError(f"{path}: not an SBD file with GTcls.Segmentation ({type(error).__name__}: {error})") from None
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.number) or not np.isin(mask, [*range(len(CLASSES)), IGNORE]).all():
        raise UserError(f"{path}: GTcls.Segmentation: expected labels 0..{len(CLASSES) - 1} of shape [H, W]")
    return mask.astype(np.uint8)


def _find_masks(dataset: Voc12, root: Path, prepared: Path, splits: dict[str, tuple[str, ...]], track: Track) -> dict[str, str]:
    """Return where the mask of each image is, in the index's two forms; images without one are left out."""
    own = _masks_in(root / _MASKS)
    masks = {identifier: f"{_MASKS}/{identifier}.png" for identifier in own}
    rest = [identifier for identifier in splits["train"] if identifier not in own]
    if dataset.sbd:
        directory = _sbd_directory(dataset) / "cls"
        require(rest, scan(directory, (".mat",)), directory, ".mat", "the split 'train'")
        return masks | convert_masks(prepared, rest, lambda i: read_sbd_mask(directory / f"{i}.mat"), track, "SBD masks")
    augmented = _masks_in(root / _AUGMENTED)
    return masks | {identifier: f"{_AUGMENTED}/{identifier}.png" for identifier in rest if identifier in augmented}


def _masks_in(directory: Path) -> Entries:
    return scan(directory, (".png",)) if directory.is_dir() else {}


def _label_origin(dataset: Voc12, root: Path) -> Origin:
    if dataset.labels == "xml":
        return "xml"
    if dataset.labels == "masks":
        return "masks"
    path = root / Path(dataset.labels).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file (dataset.labels: expected xml, masks or a CSV)")
    return path


def _sbd_directory(dataset: Voc12) -> Path:
    directory = existing_directory(dataset.sbd or "", "dataset.sbd")
    existing_directory(directory / "cls", "dataset.sbd: the directory 'dataset' of SBD, with cls/*.mat, is expected")
    return directory
