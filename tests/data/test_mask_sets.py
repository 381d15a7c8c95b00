"""Masks of many images, in a folder or an archive."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from wsss_core.data.images import save_mask
from wsss_core.data.mask_sets import pack_masks, read_mask_of
from wsss_core.errors import UserError

IDS = ["b", "a/c", "d.e"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for image_id in IDS:
        path = tmp_path / "masks" / f"{image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_mask(path, rng.integers(0, 4, (5, 7), dtype=np.uint8))
    return tmp_path / "masks"


def test_an_archive_gives_what_the_folder_gave(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "masks.zip"
    pack_masks(folder, IDS, archive)
    for image_id in IDS:
        mask = read_mask_of(archive, image_id, 4)
        assert mask.dtype == np.uint8 and np.array_equal(mask, read_mask_of(folder, image_id, 4))
    with zipfile.ZipFile(archive) as packed:
        assert packed.namelist() == [f"{image_id}.png" for image_id in IDS] and packed.testzip() is None


def test_same_masks_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        pack_masks(folder, IDS, tmp_path / name)
        os.utime(folder / "b.png", (0, 0))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_an_archive_appears_whole_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pack_masks(folder, [*IDS, "missing"], tmp_path / "masks.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks"]


def test_errors_name_the_archive(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "masks.zip"
    with pytest.raises(UserError, match=r"masks\.zip: not a readable archive of masks"):
        read_mask_of(archive, "b")
    pack_masks(folder, IDS, archive)
    with pytest.raises(UserError, match=r"masks\.zip: holds no mask of the image 'x'"):
        read_mask_of(archive, "x")
    with pytest.raises(UserError, match=r"masks\.zip, b\.png: label \d is out of range; expected 0\.\.0 or 255"):
        read_mask_of(archive, "b", 1)
    (tmp_path / "damaged.zip").write_bytes(archive.read_bytes()[:60])
    with pytest.raises(UserError, match="not a readable archive"):
        read_mask_of(tmp_path / "damaged.zip", "b")


def test_a_new_archive_at_the_same_place_is_read_anew(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "masks.zip"
    pack_masks(folder, IDS, archive)
    before = read_mask_of(archive, "b")
    save_mask(folder / "b.png", np.full((5, 7), 3, np.uint8))
    pack_masks(folder, IDS, archive)
    assert not (before == 3).all() and (read_mask_of(archive, "b") == 3).all()


def test_a_damaged_mask_in_an_archive_is_an_error(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "masks.zip"
    pack_masks(folder, IDS, archive)
    data = bytearray(archive.read_bytes())
    data[60:80] = bytes(20)
    archive.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"masks\.zip"):
        read_mask_of(archive, "b")


def test_processes_that_were_forked_do_not_disturb_each_other(tmp_path: Path) -> None:
    """A handle copied by a fork would share its place in the file: each process opens the archive itself."""
    rng = np.random.default_rng(0)
    expected = {str(i): rng.integers(0, 200, (300, 300), dtype=np.uint8) for i in range(4)}
    for image_id, mask in expected.items():
        (tmp_path / "masks").mkdir(exist_ok=True)
        save_mask(tmp_path / "masks" / f"{image_id}.png", mask)
    archive = tmp_path / "masks.zip"
    pack_masks(tmp_path / "masks", expected, archive)
    read_mask_of(archive, "0")
    children = []
    for image_id, mask in expected.items():
        child = os.fork()
        if child == 0:
            try:
                ok = all(np.array_equal(read_mask_of(archive, image_id), mask) for _ in range(60))
            except BaseException:
                ok = False
            os._exit(0 if ok else 1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
