"""Own images: the two layouts, the forms of labels, splits, and one clear line for each mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_core.config import Folder
from wsss_core.data.folder import build_index
from wsss_core.data.images import save_mask
from wsss_core.data.index import DataIndex
from wsss_core.errors import UserError


def track(items, what, total=None):
    return iter(items)


def index_of(root: Path, **keys) -> DataIndex:
    return build_index(Folder(root=str(root), **keys), root / "unused", track)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), value, dtype=np.uint8)).save(path)


def write_voc_xml(path: Path, *names: str) -> None:
    objects = "".join(f"<object><name>{n}</name><difficult>1</difficult><part><name>head</name></part></object>" for n in names)
    write(path, f"<annotation><filename>x.jpg</filename>{objects}</annotation>")


@pytest.fixture
def voc_layout(tmp_path: Path) -> Path:
    for name in "abcd":
        write_image(tmp_path / "JPEGImages" / f"{name}.jpg")
    write(tmp_path / "ImageSets/Segmentation/train.txt", "a\nb\n\n")
    write(tmp_path / "ImageSets/Segmentation/val.txt", "c\n")
    write(tmp_path / "classes.txt", "background\nsheep\ncow\n")
    write(tmp_path / "image_labels.csv", "image,tags\na,cow;sheep\nb,\nc.jpg,cow\n")
    (tmp_path / "SegmentationClass").mkdir()
    for name in "ac":
        save_mask(tmp_path / "SegmentationClass" / f"{name}.png", np.zeros((6, 8), dtype=np.uint8))
    return tmp_path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    for number in range(10):
        write_image(tmp_path / "images" / f"{number}.png")
    write(tmp_path / "tags.csv", "".join(f"{number}.png,{'cat;dog' if number % 2 else 'cat'}\n" for number in range(10)))
    return tmp_path


def test_voc_layout(voc_layout: Path) -> None:
    index = index_of(voc_layout)
    assert index.classes == ("background", "sheep", "cow")
    assert [(r.id, r.image, r.labels, r.mask) for r in index.splits["train"]] == [
        ("a", "JPEGImages/a.jpg", (1, 2), "SegmentationClass/a.png"),
        ("b", "JPEGImages/b.jpg", (), None),
    ]
    assert [r.labels for r in index.splits["val"]] == [(2,)]
    assert "test" not in index.splits
    assert index.label_source == "image_labels.csv"


def test_test_split_needs_no_labels(voc_layout: Path) -> None:
    write(voc_layout / "ImageSets/Segmentation/test.txt", "d.jpg\n")
    assert [(r.id, r.labels) for r in index_of(voc_layout).splits["test"]] == [("d", ())]


def test_one_column_per_class(voc_layout: Path) -> None:
    write(voc_layout / "image_labels.csv", "image,cow,sheep\na,1,1\nb,0,0\nc,1,0\n")
    index = index_of(voc_layout)
    assert [r.labels for r in index.splits["train"] + index.splits["val"]] == [(1, 2), (), (2,)]


def test_columns_without_header_take_the_class_file(voc_layout: Path) -> None:
    write(voc_layout / "image_labels.csv", "a,1,0\nb,0,0\nc,0,1\n")
    assert [r.labels for r in index_of(voc_layout).splits["train"]] == [(1,), ()]
    (voc_layout / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"image_labels.csv: line 1: expected a header"):
        index_of(voc_layout)


def test_single_class_column(voc_layout: Path) -> None:
    write(voc_layout / "image_labels.csv", "image,cow\na,1\nb,0\nc,0\n")
    assert [r.labels for r in index_of(voc_layout).splits["train"]] == [(2,), ()]


def test_background_tag_says_nothing(voc_layout: Path) -> None:
    write(voc_layout / "image_labels.csv", "image,tags\na,background;cow\nb,background\nc,\n")
    assert [r.labels for r in index_of(voc_layout).splits["train"]] == [(2,), ()]


def test_xml_counts_difficult_objects_but_not_their_parts(voc_layout: Path) -> None:
    (voc_layout / "image_labels.csv").unlink()
    for name, classes in {"a": ("cow", "cow"), "b": (), "c": ("sheep",)}.items():
        write_voc_xml(voc_layout / "Annotations" / f"{name}.xml", *classes)
    index = index_of(voc_layout)
    assert [r.labels for r in index.splits["train"]] == [(2,), ()]
    assert index.label_source == "XML object annotations"


def test_masks_give_labels_only_when_named(voc_layout: Path) -> None:
    (voc_layout / "image_labels.csv").unlink()
    with pytest.raises(UserError, match="no image-level labels"):
        index_of(voc_layout)
    mask = np.zeros((6, 8), dtype=np.uint8)
    mask[0, 0], mask[1, 1] = 2, 255
    for name in "abc":
        save_mask(voc_layout / "SegmentationClass" / f"{name}.png", mask)
    index = index_of(voc_layout, labels="masks")
    assert index.label_source == "masks"
    assert index.splits["train"][0].labels == (2,)


def test_plain_directory_takes_classes_from_labels_and_splits_by_hash(plain: Path) -> None:
    index = index_of(plain, val_fraction=0.3)
    assert index.classes == ("background", "cat", "dog")
    ids = {split: {r.id for r in records} for split, records in index.splits.items()}
    assert (len(ids["train"]), len(ids["val"])) == (7, 3)
    assert ids == {split: {r.id for r in records} for split, records in index_of(plain, val_fraction=0.3).splits.items()}
    assert ids["train"] | ids["val"] == {str(n) for n in range(10)}


def test_added_image_moves_at_most_one_other(plain: Path) -> None:
    before = {r.id for r in index_of(plain).splits["val"]}
    write_image(plain / "images" / "new.png")
    with open(plain / "tags.csv", "a") as file:
        file.write("new,cat\n")
    after = {r.id for r in index_of(plain).splits["val"]}
    assert len(before - after) <= 1


def test_small_share_still_holds_out_an_image(plain: Path) -> None:
    assert len(index_of(plain, val_fraction=0.01).splits["val"]) == 1


def test_nested_and_flat_images(tmp_path: Path) -> None:
    for name in ("one/x.jpg", "two/x.JPG", "y.png"):
        write_image(tmp_path / name)
    (tmp_path / "masks" / "one").mkdir(parents=True)
    save_mask(tmp_path / "masks" / "one" / "x.png", np.zeros((6, 8), dtype=np.uint8))
    write(tmp_path / "labels.csv", "image,tags\none/x,cat\ntwo/x.JPG,dog\ny,\n")
    records = {r.id: r for split in index_of(tmp_path).splits.values() for r in split}
    assert {i: (r.image, r.mask) for i, r in records.items()} == {
        "one/x": ("one/x.jpg", "masks/one/x.png"),
        "two/x": ("two/x.JPG", None),
        "y": ("y.png", None),
    }


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("image_labels.csv", "image,tags\na,cow\nc,cow\n", r"image_labels.csv: no row for the image 'b'"),
        ("image_labels.csv", "image,tags\na,caw\nb,\nc,\n", r"image_labels.csv: unknown class 'caw'; did you mean 'cow'"),
        ("image_labels.csv", "image,tags\na,cow\na.jpg,cow\n", r"line 3: the image 'a' has two rows"),
        ("image_labels.csv", "image,tags\na,cow,sheep\n", r"line 2: expected 2 cells, got 3"),
        ("image_labels.csv", "image,cow,sheep\na,1,2\n", r"line 2: column 'sheep': expected 0 or 1, got '2'"),
        ("image_labels.csv", "image,cow,cow\na,1,0\n", r"line 1: expected a different class name"),
        ("image_labels.csv", "\n", r"image_labels.csv: empty"),
        ("classes.txt", "sheep\ncow\n", r"classes.txt: the first line must be 'background' \(class 0\), got 'sheep'"),
        ("classes.txt", "background\ncow\ncow\n", r"classes.txt: the class 'cow' is there twice"),
        ("classes.txt", "background\n", r"classes.txt: expected 1 to 254 classes"),
        ("ImageSets/Segmentation/train.txt", "a\n../b\n", r"train.txt: line 2: .*'\.\./b'"),
        ("ImageSets/Segmentation/train.txt", "/etc/b\n", r"train.txt: line 1: .*'/etc/b'"),
        ("ImageSets/Segmentation/train.txt", "a\na.jpg\n", r"train.txt: line 2: 'a' is listed twice"),
        ("ImageSets/Segmentation/train.txt", "a\nnone\n", r"train.txt: no image 'none' in .*JPEGImages"),
    ],
)
def test_mistakes_name_file_and_expectation(voc_layout: Path, file: str, text: str, message: str) -> None:
    write(voc_layout / file, text)
    with pytest.raises(UserError, match=message) as error:
        index_of(voc_layout)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"images": "nowhere"}, r"nowhere: no such directory \(dataset.images\)"),
        ({"images": "../x"}, r"dataset.images: expected a path below"),
        ({"masks": "/x"}, r"dataset.masks: expected a path below"),
        ({"labels": "mine.csv"}, r"mine.csv: no such file \(dataset.labels\)"),
        ({"labels": "xml"}, r"Annotations: no such directory \(dataset.labels: xml\)"),
        ({"labels": "masks"}, r"b: has no mask; labels 'masks' need one"),
        ({"classes": "names.txt"}, r"names.txt: no such file \(dataset.classes\)"),
        ({"splits": "lists"}, r"lists: no such directory \(dataset.splits\)"),
    ],
)
def test_wrong_keys(voc_layout: Path, keys: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        index_of(voc_layout, **keys)


def test_missing_root_list_and_annotation(voc_layout: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: no such directory \(dataset.root\)"):
        index_of(tmp_path / "none")
    (voc_layout / "Annotations").mkdir()
    with pytest.raises(UserError, match=r"Annotations/a.xml: no such annotation"):
        index_of(voc_layout, labels="xml")
    write(voc_layout / "Annotations/a.xml", "<annotation><object>")
    with pytest.raises(UserError, match=r"Annotations/a.xml: not an XML file"):
        index_of(voc_layout, labels="xml")
    (voc_layout / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(UserError, match=r"val.txt: no such file"):
        index_of(voc_layout)


def test_two_files_of_one_name(voc_layout: Path) -> None:
    write_image(voc_layout / "JPEGImages" / "a.png")
    with pytest.raises(UserError, match="suffix alone"):
        index_of(voc_layout)
