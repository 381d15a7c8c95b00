"""Reading and writing single images and indexed masks, with errors that name the file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from wsss_core.errors import UserError

IGNORE = 255


def read_image(path: Path) -> np.ndarray:
    """Return an image as a writable uint8[H, W, 3] in RGB, upright if its Exif orientation says how a camera was held.

    Raises `UserError` if it is missing or cannot be decoded; damaged Exif data is ignored.
    """
    try:
        with Image.open(path) as image:
            image.load()
            with suppress(Exception):  # Pillow raises many kinds on damaged Exif data
                ImageOps.exif_transpose(image, in_place=True)
            return np.array(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a readable image ({error})") from None


def image_size(path: Path) -> tuple[int, int]:
    """Return an image's (width, height) as `read_image` has it, from its header; raises OSError, SyntaxError or ValueError if that is damaged."""
    with Image.open(path) as image:
        turned = False
        # Of a TIFF Pillow has turned the size itself; a PNG without Exif data in its header it would decode to look behind the pixels.
        if image.format != "TIFF" and "exif" in image.info:
            with suppress(Exception):
                turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size


def read_mask(path: Path, num_classes: int | None = None) -> np.ndarray:
    """Return an indexed PNG's class numbers as uint8[H, W] (255: ignore).

    Raises `UserError` if it is missing, unreadable, no single-channel image, or holds labels not below `num_classes`.
    """
    try:
        with open(path, "rb") as file:
            return decode_mask(file, str(path), num_classes)
    except FileNotFoundError:
        raise UserError(f"{path}: no such mask") from None
    except OSError as error:
        raise UserError(f"{path}: not a readable mask ({error})") from None


def decode_mask(file: BinaryIO, name: str, num_classes: int | None = None) -> np.ndarray:
    """Return the mask in an open file, called `name` in errors; else as `read_mask`."""
    try:
        with Image.open(file) as image:
            if image.mode not in ("P", "L", "1"):
                raise UserError(f"{name}: expected an indexed PNG (one class number a pixel), got mode {image.mode}")
            mask = np.array(image, dtype=np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{name}: not a readable mask ({error})") from None
    if num_classes is not None:
        wrong = np.unique(mask[(mask >= num_classes) & (mask != IGNORE)])
        if wrong.size:
            raise UserError(f"{name}: label {wrong[0]} is out of range; expected 0..{num_classes - 1} or {IGNORE} (ignore)")
    return mask


def palette(num_colours: int = 256) -> np.ndarray:
    """Return the PASCAL VOC colour map as uint8[num_colours, 3]: the bits of the class number, spread over R, G and B."""
    numbers = np.arange(num_colours)
    colours = np.zeros((num_colours, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def save_mask(path: Path, mask: np.ndarray) -> None:
    """Write uint8[H, W] as an indexed PNG with the VOC palette."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8), mode="P")
    image.putpalette(palette().tobytes())
    image.save(path, format="PNG")


def overlay_mask(image: np.ndarray, mask: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """Return uint8[H, W, 3]: the image with the classes of `mask` tinted in the palette's colours, background untouched."""
    colours = palette()[mask]
    foreground = ((mask != 0) & (mask != IGNORE))[..., None]
    mixed = (1 - opacity) * image + opacity * colours
    return np.where(foreground, mixed, image).astype(np.uint8)
