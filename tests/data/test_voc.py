"""PASCAL VOC 2012 and SBD in their true formats: the trainaug rule, where masks come from, resumed conversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from wsss_core.config import Voc12
from wsss_core.data import voc
from wsss_core.data.images import read_mask, save_mask
from wsss_core.data.index import DataIndex
from wsss_core.errors import UserError

SIZE = (5, 7)


def track(items, what, total=None):
    return iter(items)


def write_lists(directory: Path, **lists: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, ids in lists.items():
        (directory / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids.split()))


def write_sbd_mat(path: Path, segmentation: np.ndarray) -> None:
    """As SBD's cls/*.mat: a struct GTcls with Boundaries (a cell of matrices), Segmentation and CategoriesPresent."""
    boundaries = np.empty((20, 1), dtype=object)
    for number in range(20):
        boundaries[number, 0] = np.zeros(SIZE, dtype=np.uint8)
    present = np.setdiff1d(segmentation, [0]).astype(np.uint8)[:, None]
    savemat(path, {"GTcls": {"Boundaries": boundaries, "Segmentation": segmentation, "CategoriesPresent": present}}, do_compression=True)


def mask_of(number: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[1:3, 2:5] = number
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """VOC: t1 t2 train, v1 v2 val. SBD: t2 s1 train, v1 s2 val."""
    root = tmp_path / "VOC2012"
    write_lists(root / "ImageSets/Segmentation", train="t1 t2", val="v1 v2")
    for directory in ("JPEGImages", "Annotations", "SegmentationClass"):
        (root / directory).mkdir()
    for name in ("t1", "t2", "v1", "v2", "s1", "s2"):
        Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        objects = (
            "<object><name>cat</name><difficult>1</difficult></object><object><name>person</name><part><name>hand</name></part></object>"
        )
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation><folder>VOC2012</folder>{objects}</annotation>")
    for name in ("t1", "t2", "v1", "v2"):
        save_mask(root / "SegmentationClass" / f"{name}.png", mask_of(8))
    return root


@pytest.fixture
def sbd(tmp_path: Path) -> Path:
    directory = tmp_path / "benchmark_RELEASE" / "dataset"
    write_lists(directory, train="t2 s1", val="v1 s2")
    (directory / "cls").mkdir()
    for number, name in enumerate(("t2", "s1", "v1", "s2"), start=11):
        write_sbd_mat(directory / "cls" / f"{name}.mat", mask_of(number))
    return directory


def index_of(root: Path, prepared: Path, **keys) -> DataIndex:
    return voc.build_index(Voc12(root=str(root), **keys), prepared, track)


def test_classes_are_the_twenty_in_alphabetical_order() -> None:
    assert len(voc.CLASSES) == 21
    assert list(voc.CLASSES[1:]) == sorted(voc.CLASSES[1:])


def test_trainaug_is_sbd_without_voc_val_and_with_voc_train(root: Path, sbd: Path, tmp_path: Path) -> None:
    index = index_of(root, tmp_path / "out", sbd=str(sbd))
    assert [r.id for r in index.splits["train"]] == ["s1", "s2", "t1", "t2"]
    assert [r.id for r in index.splits["val"]] == ["v1", "v2"]


def test_masks_are_vocs_own_then_converted(root: Path, sbd: Path, tmp_path: Path) -> None:
    index = index_of(root, tmp_path / "out", sbd=str(sbd))
    assert {r.id: r.mask for r in index.splits["train"]} == {
        "t1": "SegmentationClass/t1.png",
        "t2": "SegmentationClass/t2.png",
        "s1": "prepared:masks/s1.png",
        "s2": "prepared:masks/s2.png",
    }
    np.testing.assert_array_equal(read_mask(index.resolve("prepared:masks/s1.png")), mask_of(12))
    assert {path.name for path in (tmp_path / "out/masks").iterdir()} == {"s1.png", "s2.png"}


def test_labels_are_all_objects_of_the_xml(root: Path, tmp_path: Path) -> None:
    index = index_of(root, tmp_path / "out", train_split="train")
    assert index.splits["train"][0].labels == (voc.CLASSES.index("cat"), voc.CLASSES.index("person"))
    assert index.label_source == "XML object annotations"


def test_labels_from_csv_and_from_masks(root: Path, sbd: Path, tmp_path: Path) -> None:
    (tmp_path / "tags.csv").write_text("image,tags\nt1,dog\nt2,\nv1,bus;car\nv2,dog\n")
    by_csv = index_of(root, tmp_path / "out", train_split="train", labels=str(tmp_path / "tags.csv"))
    assert [r.labels for r in by_csv.splits["val"]] == [(6, 7), (12,)]
    by_masks = index_of(root, tmp_path / "out", sbd=str(sbd), labels="masks")
    assert [r.labels for r in by_masks.splits["train"]] == [(12,), (14,), (8,), (8,)]
    assert by_masks.label_source == "masks"


def test_own_trainaug_list_and_augmented_masks(root: Path, tmp_path: Path) -> None:
    write_lists(root / "ImageSets/Segmentation", trainaug="t1 s2", test="s1")
    (root / "SegmentationClassAug").mkdir()
    save_mask(root / "SegmentationClassAug" / "s2.png", mask_of(3))
    index = index_of(root, tmp_path / "out")
    assert [(r.id, r.mask) for r in index.splits["train"]] == [("t1", "SegmentationClass/t1.png"), ("s2", "SegmentationClassAug/s2.png")]
    assert [(r.id, r.mask) for r in index.splits["test"]] == [("s1", None)]


def test_stopped_conversion_goes_on(root: Path, sbd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = voc.read_sbd_mask
    converted: list[str] = []

    def stops_at_second(path: Path) -> np.ndarray:
        if converted:
            raise KeyboardInterrupt
        converted.append(path.stem)
        return read(path)

    monkeypatch.setattr(voc, "read_sbd_mask", stops_at_second)
    with pytest.raises(KeyboardInterrupt):
        index_of(root, tmp_path / "out", sbd=str(sbd))
    first = tmp_path / "out/masks" / f"{converted[0]}.png"
    time = first.stat().st_mtime_ns
    (tmp_path / "out/masks/.s2.png.77.tmp").write_bytes(b"half")

    monkeypatch.setattr(voc, "read_sbd_mask", lambda path: converted.append(path.stem) or read(path))
    index_of(root, tmp_path / "out", sbd=str(sbd))
    assert sorted(converted) == ["s1", "s2"]
    assert first.stat().st_mtime_ns == time
    assert sorted(path.name for path in (tmp_path / "out/masks").iterdir()) == ["s1.png", "s2.png"]


def test_mistakes_name_the_file(root: Path, sbd: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"trainaug.txt: no such file; expected it or dataset.sbd"):
        index_of(root, out)
    with pytest.raises(UserError, match=r"cls: no such directory \(dataset.sbd"):
        index_of(root, out, sbd=str(tmp_path))
    with pytest.raises(UserError, match=r"all.csv: no such file \(dataset.labels"):
        index_of(root, out, train_split="train", labels="all.csv")
    (root / "Annotations/s1.xml").unlink()
    with pytest.raises(UserError, match=r"Annotations/s1.xml: no such annotation"):
        index_of(root, out, sbd=str(sbd))
    (root / "JPEGImages/s1.jpg").unlink()
    with pytest.raises(UserError, match=r"JPEGImages/s1.jpg: no such file, but the split 'train' lists it"):
        index_of(root, out, sbd=str(sbd))


def test_unknown_class_and_damaged_xml(root: Path, tmp_path: Path) -> None:
    (root / "Annotations/t1.xml").write_text("<annotation><object><name>catt</name></object></annotation>")
    with pytest.raises(UserError, match=r"t1: unknown class 'catt'; did you mean 'cat'"):
        index_of(root, tmp_path / "out", train_split="train")
    (root / "Annotations/t1.xml").write_text("<annotation><object></object></annotation>")
    with pytest.raises(UserError, match=r"t1.xml: not a VOC annotation"):
        index_of(root, tmp_path / "out", train_split="train")


def test_wrong_sbd_files(root: Path, sbd: Path, tmp_path: Path) -> None:
    write_sbd_mat(sbd / "cls/s1.mat", mask_of(21))
    with pytest.raises(UserError, match=r"s1.mat: GTcls.Segmentation: expected labels 0..20"):
        index_of(root, tmp_path / "out", sbd=str(sbd))
    savemat(sbd / "cls/s1.mat", {"GTinst": {"Segmentation": mask_of(1)}})
    with pytest.raises(UserError, match=r"s1.mat: not an SBD file"):
        index_of(root, tmp_path / "out", sbd=str(sbd))
    (sbd / "cls/s1.mat").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"s1.mat: not an SBD file"):
        index_of(root, tmp_path / "out", sbd=str(sbd))
    (sbd / "cls/s1.mat").unlink()
    with pytest.raises(UserError, match=r"cls/s1.mat: no such file, but the split 'train' lists it"):
        index_of(root, tmp_path / "out", sbd=str(sbd))
    assert not (tmp_path / "out/index.json").exists()
