"""Checksums of what comes from outside, and the spec's part of a data set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from wsss_core.config import Coco14, Folder, Shapes, Voc12
from wsss_core.data import sources
from wsss_core.data.images import save_mask
from wsss_core.errors import UserError


def track(items, what, total=None):
    return iter(items)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "splits").mkdir()
    for number, name in enumerate("abcd"):
        Image.fromarray(np.full((6, 8, 3), 60 * number, dtype=np.uint8)).save(root / "images" / f"{name}.png")
        save_mask(root / "masks" / f"{name}.png", np.zeros((6, 8), dtype=np.uint8))
    (root / "splits/train.txt").write_text("a\nb\n")
    (root / "splits/val.txt").write_text("c\n")
    (root / "classes.txt").write_text("background\ncat\ndog\n")
    (root / "tags.csv").write_text("image,tags\na,cat\nb,dog\nc,\n")
    return root


def append(path: Path, data: bytes = b" ") -> None:
    with open(path, "ab") as file:
        file.write(data)


def checksums(root: Path, **keys: Any) -> tuple[str, str]:
    found = sources.checksum(Folder(root=str(root), **keys))
    return found["images"], found["masks"]


def test_checksum_does_not_know_the_place(root: Path) -> None:
    before = checksums(root)
    assert all(len(digest) == 64 for digest in before)
    moved = root.rename(root.with_name("elsewhere"))
    for path in moved.rglob("*"):
        os.utime(path, (1, 1))
    assert checksums(moved) == before


@pytest.mark.parametrize("file", ["images/a.png", "splits/val.txt", "classes.txt", "tags.csv"])
def test_changed_images_and_labels_leave_the_masks_alone(root: Path, file: str) -> None:
    before = checksums(root)
    append(root / file, b"\n")
    after = checksums(root)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_changed_mask_changes_masks_alone(root: Path) -> None:
    before = checksums(root)
    append(root / "masks/a.png")
    after = checksums(root)
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_lost_mask_changes_the_index_and_so_both(root: Path) -> None:
    before = checksums(root)
    (root / "masks/a.png").unlink()
    assert all(x != y for x, y in zip(checksums(root), before, strict=True))


def test_mask_that_gives_labels_changes_both(root: Path) -> None:
    before = checksums(root, labels="masks")
    append(root / "masks/a.png")
    assert all(x != y for x, y in zip(checksums(root, labels="masks"), before, strict=True))


def test_files_of_no_split_do_not_count(root: Path) -> None:
    before = checksums(root)
    append(root / "images/d.png")
    append(root / "masks/d.png")
    assert checksums(root) == before


def test_same_size_shows_only_by_content(root: Path) -> None:
    by_size, by_content = checksums(root), checksums(root, checksum="content")
    data = bytearray((root / "images/a.png").read_bytes())
    data[-1] ^= 1
    (root / "images/a.png").write_bytes(data)
    assert checksums(root) == by_size
    assert checksums(root, checksum="content") != by_content


def test_checksum_of_voc_covers_annotations_and_sbd(tmp_path: Path) -> None:
    root, sbd = tmp_path / "VOC2012", tmp_path / "sbd"
    for directory in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / directory).mkdir(parents=True)
    (sbd / "cls").mkdir(parents=True)
    for name in ("t", "v", "s"):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(b"x")
        (root / "Annotations" / f"{name}.xml").write_bytes(b"x")
    for path, text in ((root / "ImageSets/Segmentation", "tv"), (sbd, "sv")):
        for split, name in zip(("train", "val"), text, strict=True):
            (path / f"{split}.txt").write_text(f"{name}\n")
    savemat(sbd / "cls/s.mat", {"GTcls": {"Segmentation": np.zeros((2, 2))}})
    (root / "SegmentationClass/t.png").write_bytes(b"x")
    dataset = Voc12(root=str(root), sbd=str(sbd))

    seen = [sources.checksum(dataset)]
    for path in (root / "Annotations/s.xml", sbd / "cls/s.mat", sbd / "val.txt"):
        append(path)
        seen.append(sources.checksum(dataset))
    assert len({found["images"] for found in seen}) == 4
    assert len({found["masks"] for found in seen}) == 1
    append(root / "SegmentationClass/t.png")
    assert sources.checksum(dataset)["images"] == seen[-1]["images"]
    assert sources.checksum(dataset)["masks"] != seen[-1]["masks"]


def test_checksum_of_coco_covers_annotations_and_images(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / f"{split}2014").mkdir()
        (tmp_path / f"{split}2014/x.jpg").write_bytes(b"x")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/instances_{split}2014.json").write_text("{}")
    dataset = Coco14(root=str(tmp_path))
    seen = [sources.checksum(dataset)["images"]]
    for file in ("annotations/instances_val2014.json", "train2014/x.jpg"):
        append(tmp_path / file)
        seen.append(sources.checksum(dataset)["images"])
    assert len(set(seen)) == 3


def test_made_images_have_nothing_outside() -> None:
    assert sources.checksum(Shapes()) == {"images": "", "masks": ""}
    assert sources.spec_files(Shapes()) == {}
    assert set(sources.spec_parameters(Shapes())) == set(Shapes.model_fields) - {"name"}


@pytest.mark.parametrize(
    "dataset",
    [
        Shapes(name="mine", seed=3, objects=(2, 2)),
        Folder(name="mine", root="/data/mine", labels="tags.csv", checksum="content"),
        Voc12(root="/data/VOC2012", sbd="/data/sbd"),
        Voc12(root="/data/VOC2012", train_split="train"),
        Coco14(root="/data/coco"),
    ],
)
def test_spec_and_back(dataset: Any) -> None:
    parameters = json.loads(json.dumps({**sources.spec_parameters(dataset), "content": "abc"}))
    files = sources.spec_files(dataset)
    assert not {"name", "root", "sbd", "checksum"} & set(parameters)
    assert "/data" not in json.dumps(parameters)
    back = sources.dataset_from_spec(parameters, files)
    unrecorded = {"name", "checksum"}
    assert back.model_dump(exclude=unrecorded) == dataset.model_dump(exclude=unrecorded)


def test_spec_with_unknown_source_or_key() -> None:
    with pytest.raises(UserError, match=r"spec.json: parameters.dataset.source: unknown source 'voc'"):
        sources.dataset_from_spec({"source": "voc"}, {})
    with pytest.raises(UserError, match=r"spec.json: parameters.dataset: root: missing"):
        sources.dataset_from_spec({"source": "folder"}, {})


def test_made_images_through_the_same_door(tmp_path: Path) -> None:
    index = sources.build_index(Shapes(train=2, val=1, size=48), tmp_path, track)
    assert len(index.split("train")) == 2
    assert index.image_path(index.split("val")[0]).is_file()


def test_plan_time_functions_import_neither_torch_nor_scipy(root: Path) -> None:
    code = f"""
import sys
from wsss_core.config import Folder, Voc12
from wsss_core.data import coco, sources, voc
sources.checksum(Folder(root={str(root)!r}))
print([name for name in ("torch", "scipy", "pycocotools") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
