"""The data check: every kind of damage gives one line that names the file, and the figures are counted right."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from wsss_core.config import Folder
from wsss_core.data.check import check, check_dataset, print_statistics, statistics
from wsss_core.data.folder import build_index
from wsss_core.data.images import save_mask
from wsss_core.data.index import DataIndex, Record

TAGS = {"a": "cat;dog", "b": "cat", "c": "", "d": "dog", "e": "dog"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for directory in ("images", "masks", "splits"):
        (tmp_path / directory).mkdir()
    for number, name in enumerate(TAGS):
        pixels = np.random.default_rng(number).integers(0, 255, (20 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.jpg")
        save_mask(tmp_path / "masks" / f"{name}.png", np.full(pixels.shape[:2], number % 3, dtype=np.uint8))
    (tmp_path / "splits/train.txt").write_text("a\nb\nc\n")
    (tmp_path / "splits/val.txt").write_text("d\ne\n")
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    (tmp_path / "tags.csv").write_text("image,tags\n" + "".join(f"{name},{tags}\n" for name, tags in TAGS.items()))
    return tmp_path


def index_of(root: Path) -> DataIndex:
    return build_index(Folder(root=str(root)), root / "unused", lambda items, what, total=None: iter(items))


def test_sound_data_has_no_problems(root: Path) -> None:
    assert check(index_of(root)) == []


def test_processes_find_the_same(root: Path) -> None:
    (root / "images/b.jpg").write_bytes(b"no image")
    index = index_of(root)
    assert check(index, workers=2) == check(index, workers=0) != []


def test_damaged_and_missing_images(root: Path) -> None:
    data = (root / "images/a.jpg").read_bytes()
    (root / "images/a.jpg").write_bytes(data[: len(data) // 2])
    (root / "images/b.jpg").write_bytes(b"no image")
    index = index_of(root)
    (root / "images/d.jpg").unlink()
    problems = check(index)
    assert len(problems) == 3
    assert "a.jpg: not a readable image" in problems[0]
    assert "b.jpg: not a readable image" in problems[1]
    assert "d.jpg: no such image" in problems[2]


def test_masks_of_wrong_size_label_or_format(root: Path) -> None:
    save_mask(root / "masks/a.png", np.zeros((3, 4), dtype=np.uint8))
    save_mask(root / "masks/b.png", np.full((21, 30), 3, dtype=np.uint8))
    Image.fromarray(np.zeros((22, 30, 3), dtype=np.uint8)).save(root / "masks/c.png")
    problems = check(index_of(root))
    assert [p.split("masks/")[1][:5] for p in problems] == ["a.png", "b.png", "c.png"]
    assert "the mask is 4x3 pixels, its image 30x20" in problems[0]
    assert "label 3 is out of range" in problems[1]
    assert "expected an indexed PNG" in problems[2]


def test_masks_missing_on_some_images(root: Path) -> None:
    (root / "masks/b.png").unlink()
    (problem,) = check(index_of(root))
    assert problem.startswith("train: 1 of 3 images have no mask, the first is ")
    assert problem.endswith("images/b.jpg")


def test_split_without_any_mask_is_fine(root: Path) -> None:
    for name in "abc":
        (root / "masks" / f"{name}.png").unlink()
    assert check(index_of(root)) == []


def test_empty_split_and_class_without_training_image(root: Path) -> None:
    (root / "splits/val.txt").write_text("\n")
    (root / "splits/train.txt").write_text("b\nc\n")
    assert check(index_of(root)) == ["val: the split is empty", "dog: no training image has this class"]


def test_images_in_two_splits(root: Path) -> None:
    (root / "splits/val.txt").write_text("a\nd\ne\n")
    (root / "images/d.jpg").write_bytes((root / "images/b.jpg").read_bytes())
    save_mask(root / "masks/d.png", np.zeros((21, 30), dtype=np.uint8))
    same_id, same_content = check(index_of(root))
    assert same_id.endswith("a.jpg: is in both train and val")
    assert "d.jpg: of val, is the same file as" in same_content
    assert same_content.endswith("b.jpg of train")


def test_statistics(root: Path) -> None:
    values = statistics(index_of(root))
    assert values.images == {"train": 3, "val": 2}
    assert values.masks == {"train": 3, "val": 2}
    assert values.without_object == {"train": 1, "val": 0}
    assert values.per_class["train"].tolist() == [2, 1]
    assert values.per_class["val"].tolist() == [0, 2]
    assert values.together.tolist() == [[2, 1], [1, 1]]
    assert values.sizes["train"].tolist() == [[30, 20], [30, 21], [30, 22]]


def test_many_classes_are_shown_as_pairs(tmp_path: Path) -> None:
    classes = ("background", *(f"class{i}" for i in range(1, 81)))
    records = tuple(Record(str(i), f"{i}.jpg", (3, 77)) for i in range(4))
    index = DataIndex(classes, {"train": records, "val": ()}, "labels.csv", tmp_path, tmp_path)
    console = Console(file=io.StringIO(), width=100)
    print_statistics(statistics(index), console)
    (line,) = [line for line in console.file.getvalue().splitlines() if "class3, class77" in line]
    assert line.split()[2:] == ["4", "100%", "100%"]


def test_check_dataset_prints_problems_first(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "images/b.jpg").write_bytes(b"no image")
    assert check_dataset(Folder(root=str(root), name="pets"), workers=0) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pets: 5 images, 2 object classes, 1 problem"
    assert "images/b.jpg: not a readable image" in lines[1]
    assert any(line.split() == ["cat", "2", "0"] for line in lines)


def test_check_dataset_reports_what_hides_the_rest(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "classes.txt").write_text("cat\ndog\n")
    assert check_dataset(Folder(root=str(root)), workers=0) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first == "folder: 1 problem, which hides all others"
    assert "classes.txt: the first line must be 'background'" in second
