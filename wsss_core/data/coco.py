"""The source `coco14`: MS COCO 2014, its labels and masks taken from the instance annotations."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from wsss_core.config.datasets import Coco14
from wsss_core.data.images import IGNORE
from wsss_core.data.index import DataIndex, Record
from wsss_core.data.labels import BACKGROUND, check_classes
from wsss_core.data.listing import Checksum, Track, below_root, convert_masks, existing_directory, image_id, require, scan
from wsss_core.errors import UserError
from wsss_core.files import read_json

_IMAGES = {"train": "train2014", "val": "val2014"}
_LABEL_SOURCE = "instance annotations"


def build_index(dataset: Coco14, prepared: Path, track: Track) -> DataIndex:
    """Index COCO 2014, and draw the instances to `prepared/masks`.

    Classes are numbered 1..80 in the order of COCO's category ids (1..90 with gaps). An image's labels are the categories
    of all its annotations, crowds included; images without annotation are kept, as images without object.

    Raises
    ------
    UserError
        Naming the file and the annotation, and what was expected.
    """
    root = existing_directory(dataset.root, "dataset.root")
    classes: dict[str, tuple[str, ...]] = {}
    splits: dict[str, tuple[Record, ...]] = {}
    for split, path in _annotation_files(dataset, root).items():
        classes[split], splits[split] = _index_split(split, path, root, prepared, track)
    if classes["train"] != classes["val"]:
        raise UserError(f"{root / dataset.val_annotations}: categories: expected the same as in {dataset.train_annotations}")
    return DataIndex(classes["train"], splits, _LABEL_SOURCE, root, prepared)


def _index_split(split: str, path: Path, root: Path, prepared: Path, track: Track) -> tuple[tuple[str, ...], tuple[Record, ...]]:
    instances = Instances(path)
    directory = existing_directory(root / _IMAGES[split], "dataset.root")
    names = {image_id(name): name for name in sorted(instances.images)}
    require(names, scan(directory), directory, ".jpg", path.name)
    masks = convert_masks(prepared, names, lambda identifier: instances.mask(names[identifier]), track, f"masks of {split}")
    records = (Record(i, f"{_IMAGES[split]}/{name}", instances.labels(name), masks[i]) for i, name in names.items())
    return instances.classes, tuple(records)


def add_checksums(dataset: Coco14, images: Checksum, masks: Checksum) -> None:
    """Add all that the data stage reads to `images`; masks are drawn from the same annotations, so `masks` gets nothing."""
    root = existing_directory(dataset.root, "dataset.root")
    for split, path in _annotation_files(dataset, root).items():
        images.add_file(f"annotations {split}", path)
        # Which images are listed is inside an annotation file of some 400 MB: all that lie there count.
        images.add_entries(f"image {split}", scan(existing_directory(root / _IMAGES[split], "dataset.root")))


def _annotation_files(dataset: Coco14, root: Path) -> dict[str, Path]:
    files = {"train": root / dataset.train_annotations, "val": root / dataset.val_annotations}
    for split, path in files.items():
        if not path.is_file():
            raise UserError(f"{path}: no such file (dataset.{split}_annotations)")
    return files


class Instances:
    """A file `instances_*.json`.

    Attributes
    ----------
    classes
        Names of all classes, background first, then in the order of the category ids.
    images
        COCO's entry of each image (`id`, `height`, `width`) by file name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        values = read_json(path)
        try:
            categories = sorted(values["categories"], key=lambda category: category["id"])
            self.classes = (BACKGROUND, *(str(category["name"]) for category in categories))
            self._number = {category["id"]: number for number, category in enumerate(categories, start=1)}
            self.images: dict[str, dict[str, Any]] = {below_root(i["file_name"], f"{path}: file_name"): i for i in values["images"]}
            if len({image_id(name) for name in self.images}) != len(values["images"]):
                raise UserError(f"{path}: images: file_name: two images have the same name")
            known = {image["id"] for image in self.images.values() if image["height"] > 0 and image["width"] > 0}
            self._annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)
            for annotation in values["annotations"]:
                if annotation["image_id"] not in known or annotation["category_id"] not in self._number:
                    raise UserError(f"{path}: annotation {annotation['id']}: its image_id or category_id is not in the file")
                self._annotations[annotation["image_id"]].append(annotation)
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: not COCO's instance annotations ({type(error).__name__}: {error})") from None
        check_classes(self.classes, f"{path}: categories")

    def labels(self, name: str) -> tuple[int, ...]:
        """Return the sorted class numbers of an image's annotations; no mask is decoded."""
        return tuple(sorted({self._number[a["category_id"]] for a in self._annotations.get(self.images[name]["id"], ())}))

    def mask(self, name: str) -> np.ndarray:
        """Draw the instances of an image as uint8[H, W].

        Crowd regions are ignore (255) and lie below all objects; of two objects that overlap the smaller one is seen, and
        of two of the same size the later one.
        """
        from pycocotools import mask as rle_codec  # type: ignore[import-untyped]

        image = self.images[name]
        mask = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        layers = []
        for annotation in self._annotations.get(image["id"], ()):
            rle = self._encode(annotation, *mask.shape)
            if rle is not None:
                crowd = bool(annotation.get("iscrowd", 0))
                layers.append((crowd, int(rle_codec.area(rle)), IGNORE if crowd else self._number[annotation["category_id"]], rle))
        for _, _, number, rle in sorted(layers, key=lambda layer: (not layer[0], -layer[1])):
            mask[rle_codec.decode(rle).astype(bool)] = number
        return mask

    def _encode(self, annotation: dict[str, Any], height: int, width: int) -> Any | None:
        """Return an annotation's region as compressed RLE, None if it has none (polygons of less than three corners)."""
        from pycocotools import mask as rle_codec  # type: ignore[import-untyped]

        where = f"{self._path}: annotation {annotation.get('id')}: segmentation"
        region = annotation.get("segmentation")
        try:
            if isinstance(region, dict):
                if tuple(region["size"]) != (height, width):
                    raise UserError(f"{where}: size: expected {[height, width]}, got {region['size']}")
                return rle_codec.frPyObjects(region, height, width) if isinstance(region["counts"], list) else region
            # pycocotools would take four numbers for a box
            polygons = [polygon for polygon in region or () if len(polygon) >= 6]
            return rle_codec.merge(rle_codec.frPyObjects(polygons, height, width)) if polygons else None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: expected polygons or RLE ({type(error).__name__}: {error})") from None
