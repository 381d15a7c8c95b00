"""Reading images: upright however the camera was held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngImageFile

from wsss_core.data.images import image_size, read_image

UPRIGHT = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
ACROSS = UPRIGHT.transpose(1, 0, 2)
STORED = {  # Exif's definition: the side of the picture on which the first stored row lies, then that of the first column
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: ACROSS,  # left, top
    6: ACROSS[::-1],  # right, top
    7: ACROSS[::-1, ::-1],  # right, bottom
    8: ACROSS[:, ::-1],  # left, bottom
}


def save(path: Path, pixels: np.ndarray, orientation: int | None) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_read_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", STORED[orientation], orientation)
    image = read_image(path)
    assert np.array_equal(image, UPRIGHT)
    assert image.flags.writeable
    assert image_size(path) == (6, 4)


def test_jpeg_of_a_camera_held_sideways(tmp_path: Path) -> None:
    picture = np.zeros((32, 48, 3), dtype=np.uint8)
    picture[:16] = 255  # the sky
    path = save(tmp_path / "a.jpg", picture.transpose(1, 0, 2)[::-1], 6)
    image = read_image(path)
    assert image.shape == picture.shape
    assert image[:8].min() > 200
    assert image[24:].max() < 50
    assert image_size(path) == (48, 32)


def test_no_orientation_and_an_unknown_one_are_as_stored(tmp_path: Path) -> None:
    for orientation in (None, 9):
        path = save(tmp_path / "a.png", UPRIGHT, orientation)
        assert np.array_equal(read_image(path), UPRIGHT)
        assert image_size(path) == (6, 4)


@pytest.mark.parametrize("orientation", [None, 6])
def test_the_size_is_read_from_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orientation: int | None) -> None:
    path = save(tmp_path / "a.png", STORED[orientation or 1], orientation)
    decoded: list[str] = []
    monkeypatch.setattr(PngImageFile, "load", lambda image: decoded.append(image.filename))
    assert image_size(path) == (6, 4)
    assert not decoded


def test_damaged_exif_data_does_not_make_an_image_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(UPRIGHT).save(path, exif=b"Exif\0\0nonsense")
    with pytest.raises(SyntaxError), Image.open(path) as image:
        image.getexif()
    assert np.array_equal(read_image(path), UPRIGHT)
    assert image_size(path) == (6, 4)
