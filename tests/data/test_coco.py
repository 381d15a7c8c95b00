"""COCO's instance annotations in their true format: numbering, labels, and masks from polygons, RLE and crowds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_codec

from wsss_core.config import Coco14
from wsss_core.data import coco
from wsss_core.data.images import read_mask
from wsss_core.data.index import DataIndex
from wsss_core.data.truth import read_truth
from wsss_core.errors import UserError

HEIGHT, WIDTH = 20, 30
CATEGORY_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def track(items, what, total=None):
    return iter(items)


def box(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def region(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """COCO's plain RLE: run lengths of zeros and ones by turns, in column order, beginning with zeros."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": counts if flat[0] == 0 else [0, *counts]}


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = rle_codec.encode(np.asfortranarray(mask))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    categories = [{"id": i, "name": f"class{i}", "supercategory": "thing"} for i in reversed(CATEGORY_IDS)]
    annotations = {
        "train": [
            # the small object comes first, so that only its size can put it on top
            {"id": 1, "image_id": 7, "category_id": 90, "iscrowd": 0, "segmentation": [box(4, 4, 8, 8)]},
            {"id": 2, "image_id": 7, "category_id": 13, "iscrowd": 0, "segmentation": [box(2, 2, 16, 16)]},
            {"id": 3, "image_id": 7, "category_id": 1, "iscrowd": 1, "segmentation": uncompressed(region(10, 0, 30, 12))},
            {"id": 4, "image_id": 7, "category_id": 3, "iscrowd": 0, "segmentation": compressed(region(20, 14, 30, 20))},
            {"id": 5, "image_id": 7, "category_id": 4, "iscrowd": 0, "segmentation": [[1, 1, 2, 2], box(0, 18, 2, 20), box(4, 18, 6, 20)]},
        ],
        "val": [{"id": 6, "image_id": 9, "category_id": 2, "iscrowd": 1, "segmentation": compressed(region(0, 0, 3, 3))}],
    }
    for split, image_ids in {"train": (7, 8), "val": (9,)}.items():
        images = [{"id": i, "file_name": f"COCO_{split}2014_{i:012d}.jpg", "height": HEIGHT, "width": WIDTH} for i in image_ids]
        (tmp_path / f"{split}2014").mkdir()
        for image in images:
            Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)).save(tmp_path / f"{split}2014" / str(image["file_name"]))
        write(tmp_path, split, {"images": images, "annotations": annotations[split], "categories": categories})
    return tmp_path


def write(root: Path, split: str, values: Any) -> None:
    path = root / "annotations" / f"instances_{split}2014.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values))


def read(root: Path, split: str) -> Any:
    return json.loads((root / "annotations" / f"instances_{split}2014.json").read_text())


def index_of(root: Path, prepared: Path) -> DataIndex:
    return coco.build_index(Coco14(root=str(root)), prepared, track)


def test_classes_are_numbered_in_category_order(root: Path, tmp_path: Path) -> None:
    index = index_of(root, tmp_path / "out")
    assert index.num_classes == 81
    assert index.classes[:2] + index.classes[11:13] + index.classes[80:] == ("background", "class1", "class11", "class13", "class90")


def test_labels_are_the_annotated_categories(root: Path, tmp_path: Path) -> None:
    index = index_of(root, tmp_path / "out")
    assert [(r.id, r.image, r.labels) for r in index.splits["train"]] == [
        ("COCO_train2014_000000000007", "train2014/COCO_train2014_000000000007.jpg", (1, 3, 4, 12, 80)),
        ("COCO_train2014_000000000008", "train2014/COCO_train2014_000000000008.jpg", ()),
    ]
    assert index.splits["val"][0].labels == (2,)


def test_mask_small_objects_over_large_ones_over_crowds(root: Path, tmp_path: Path) -> None:
    index = index_of(root, tmp_path / "out")
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[0:12, 10:30] = 255
    expected[2:16, 2:16] = 12
    expected[4:8, 4:8] = 80
    expected[14:20, 20:30] = 3
    expected[18:20, 0:2] = expected[18:20, 4:6] = 4
    np.testing.assert_array_equal(read_truth(index, index.splits["train"][0], (HEIGHT, WIDTH)), expected)
    assert not read_truth(index, index.splits["train"][1]).any()
    assert set(np.unique(read_truth(index, index.splits["val"][0]))) == {0, 255}


def test_finished_masks_are_kept(root: Path, tmp_path: Path) -> None:
    index_of(root, tmp_path / "out")
    kept, lost = (tmp_path / "out/masks" / f"COCO_train2014_00000000000{i}.png" for i in (7, 8))
    time = kept.stat().st_mtime_ns
    lost.unlink()
    index_of(root, tmp_path / "out")
    assert kept.stat().st_mtime_ns == time
    assert read_mask(lost).shape == (HEIGHT, WIDTH)


def change_annotation(key: str, value: Any) -> Any:
    def change(values: Any) -> None:
        values["annotations"][0][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("categories"), r"instances_train2014.json: not COCO's instance annotations \(KeyError: 'categories'\)"),
        (lambda v: v["images"][0].pop("height"), r"not COCO's instance annotations \(KeyError: 'height'\)"),
        (lambda v: v["images"][0].update(file_name="../x.jpg"), r"file_name: expected a path below its directory"),
        (lambda v: v["images"][0].update(file_name="none.jpg"), r"train2014/none.jpg: no such file, but instances_train2014.json lists it"),
        (lambda v: v["images"][1].update(file_name=v["images"][0]["file_name"]), r"two images have the same name"),
        (lambda v: v["categories"].pop(), r"annotation 3: its image_id or category_id is not in the file"),
        (change_annotation("image_id", 99), r"annotation 1: its image_id or category_id is not in the file"),
        (change_annotation("segmentation", {"size": [1, 2], "counts": [2]}), r"annotation 1: segmentation: size: expected \[20, 30\]"),
        (change_annotation("segmentation", 5), r"annotation 1: segmentation: expected polygons or RLE"),
    ],
)
def test_mistakes_name_the_file(root: Path, tmp_path: Path, change: Any, message: str) -> None:
    values = read(root, "train")
    change(values)
    write(root, "train", values)
    with pytest.raises(UserError, match=message):
        index_of(root, tmp_path / "out")


def test_splits_must_agree_on_categories(root: Path, tmp_path: Path) -> None:
    values = read(root, "val")
    values["categories"][0]["name"] = "other"
    write(root, "val", values)
    with pytest.raises(UserError, match=r"instances_val2014.json: categories: expected the same"):
        index_of(root, tmp_path / "out")


def test_missing_or_damaged_annotations(root: Path, tmp_path: Path) -> None:
    path = root / "annotations/instances_val2014.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"instances_val2014.json: not a JSON file"):
        index_of(root, tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match=r"instances_val2014.json: no such file \(dataset.val_annotations\)"):
        index_of(root, tmp_path / "out")
