"""The gallery of one experiment: what each stage made of the same images, as strips of pictures on one page.

Train images: image, class activation map, the rounds of pseudo labels that a training made itself, affinity labels, boundary map, walked scores, refined scores, pseudo mask, the
segmenter's prediction, truth; val images: image, predictions, truth. A column is left out where the experiment has no such stage or the data set no masks.
"""

from __future__ import annotations

import base64
import html
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from wsss_core.data.images import IGNORE, overlay_mask, palette, read_image, read_mask
from wsss_core.data.index import DataIndex, Record, read_index
from wsss_core.data.mask_sets import read_mask_of
from wsss_core.data.truth import read_truth
from wsss_core.errors import UserError
from wsss_core.refine.scores import upsample
from wsss_core.report.tables import read_records
from wsss_core.stage import SPEC, read_spec
from wsss_core.store import ScoreStore

Column = tuple[str, Callable[[Record, np.ndarray], np.ndarray]]
"""A title, and what makes the picture uint8[H, W, 3] of an image."""
HEIGHT, GAP, TITLE = 176, 6, 22
MONTAGE = 4
"""Most strips of each split in the montage."""
MOST_ROUNDS = 6
"""Most rounds of pseudo labels in a strip, evenly spaced."""
_PREDICTIONS = {"end_to_end": "end-to-end", "end_to_end-labels": "labels known", "end_to_end-patches": "patches", "predict": "prediction"}
"""Stages that predict a split, and their titles."""
_OWN = {"index.html", "gallery.png", "train", "val", "test"}
_WHITE, _INK = (255, 255, 255), (34, 34, 34)
_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 82rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
figure { margin: 0 0 1.4rem } figure img { max-width: 100%; height: auto; display: block }
figcaption { color: #555; font-size: .9rem; margin-top: .2rem }
ul.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .4em; border-radius: 2px; vertical-align: -.08em }
"""


@dataclass(frozen=True)
class Strip:
    """The pictures of one image, side by side."""

    split: str
    record: Record
    picture: Image.Image


def write_gallery(record_path: Path, out_dir: Path, images: int, seed: int) -> None:
    """Write `index.html`, `train/*.png`, `<split>/*.png` and the montage `gallery.png` into `out_dir`, replacing an earlier gallery.

    The page holds its pictures itself: Snakemake's HTML report takes single files alone.

    Parameters
    ----------
    record_path
        The `experiment.json` of one experiment and seed.
    out_dir
        Appears whole, by renaming.
    images
        Number of train images (only such with an object) and of val images, drawn at random; fewer if there are not so many.
    seed
        Draws them: the same images for every experiment on the same data.

    Raises
    ------
    UserError
        If the record, a stage it names, or a picture is missing or damaged; if `out_dir` holds anything but a gallery.
    """
    foreign = sorted({path.name for path in out_dir.iterdir()} - _OWN) if out_dir.is_dir() else []
    if foreign:
        raise UserError(f"{out_dir}: holds {foreign[0]}, which is no part of a gallery, and would be replaced; choose another directory")
    record = read_records([record_path])[0]
    index = _index(record)
    strips = [strip for split, records, columns in _parts(record, index, images, seed) for strip in _strips(split, records, columns, index)]
    building = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        places = []
        for number, strip in enumerate(strips):
            places.append(building / strip.split / f"{number:03d}.png")
            places[-1].parent.mkdir(exist_ok=True)
            strip.picture.save(places[-1])
        montage(strips, index).save(building / "gallery.png")
        (building / "index.html").write_text(_page(record, index, strips, places), encoding="utf-8")
        if out_dir.exists():
            shutil.rmtree(out_dir)
        os.replace(building, out_dir)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def draw_records(records: Sequence[Record], images: int, seed: int, *, with_objects: bool) -> list[Record]:
    """Draw at most `images` records without repetition, from those with an object if asked for."""
    candidates = [record for record in records if record.labels or not with_objects]
    order = np.random.default_rng(seed).permutation(len(candidates))
    return [candidates[i] for i in order[:images]]


def heat(image: np.ndarray, scores: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """Return uint8[H, W, 3]: the image under the colours of scores float[H, W] in [0, 1], dark blue to yellow."""
    import matplotlib as mpl

    colours = mpl.colormaps["plasma"](np.clip(scores, 0, 1))[..., :3] * 255
    return np.rint((1 - opacity) * image + opacity * colours).astype(np.uint8)


def montage(strips: Sequence[Strip], index: DataIndex) -> Image.Image:
    """Return the first strips of each split, side by side where they fit, with a legend of all classes: predictions may show any."""
    shown = [s for split in dict.fromkeys(s.split for s in strips) for s in [s for s in strips if s.split == split][:MONTAGE]]
    width = max([s.picture.width for s in shown], default=320)
    legend = _legend(range(1, index.num_classes), index, width)
    places, left, top, below = [], 0, GAP, GAP
    for picture in (*(s.picture for s in shown), legend):
        if left + picture.width > width:
            left, top = 0, below
        places.append((picture, (GAP + left, top)))
        left, below = left + picture.width + GAP, max(below, top + picture.height + GAP)
    canvas = Image.new("RGB", (width + 2 * GAP, below), _WHITE)
    for picture, place in places:
        canvas.paste(picture, place)
    return canvas


def _index(record: dict[str, Any]) -> DataIndex:
    directory = Path(record["stages"]["data"]["directory"])
    return read_index(directory, read_spec(directory / SPEC).files.get("root"))


def _parts(record: dict[str, Any], index: DataIndex, images: int, seed: int) -> list[tuple[str, list[Record], list[Column]]]:
    """Return (split, records, columns): the train images, and those of the predicted split."""
    stages = {name: Path(stage["directory"]) for name, stage in record["stages"].items()}
    train: list[Column] = [("train image", lambda _, image: image)]
    if "cams" in stages:
        train.append(("CAM", _heat_of(stages["cams"] / "scores.h5")))
    if "classifier" in stages:
        archives = sorted((stages["classifier"] / "rounds").glob("epoch-*.zip"))
        for archive in archives[:: -(-len(archives) // MOST_ROUNDS) or 1]:
            train.append((f"labels, epoch {int(archive.stem.removeprefix('epoch-'))}", _mask_in(archive)))
    if "affinity-labels" in stages:
        train.append(("affinity labels", _labels_in(stages["affinity-labels"] / "labels")))
    if "boundary" in stages:
        train.append(("boundary", _boundary_in(stages["walk"] / "boundary.h5")))
    for name, title in (("walk", "walked"), ("refine", "refined")):
        if name in stages:
            train.append((title, _heat_of(stages[name] / "scores.h5")))
    if "pseudo" in stages:
        train.append(("pseudo mask", _mask_in(stages["pseudo"] / "masks")))
    parameters = read_spec(stages["predict"] / SPEC).parameters if "predict" in stages else {}
    if "segmenter" in stages:
        train.append(("prediction", _prediction_of(stages["segmenter"], parameters)))
    parts = [("train", draw_records(index.split("train"), images, seed, with_objects=True), train)]
    predicted = [(title, stages[name]) for name, title in _PREDICTIONS.items() if name in stages]
    if predicted:
        split = read_spec(predicted[0][1] / SPEC).parameters.get("split", "val")
        test: list[Column] = [(f"{split} image", lambda _, image: image)]
        test += [(title, _mask_in(directory / "masks")) for title, directory in predicted]
        parts.append((split, draw_records(index.split(split), images, seed, with_objects=False), test))
    for _, records, columns in parts:
        if records and all(r.mask is not None for r in records):
            columns.append(("truth", lambda r, image: overlay_mask(image, read_truth(index, r, image.shape[:2]))))
    return parts


def _heat_of(path: Path) -> Callable[[Record, np.ndarray], np.ndarray]:
    def picture(record: Record, image: np.ndarray) -> np.ndarray:
        with ScoreStore(path) as store:
            scores, classes = store.read(record.id)
        foreground = upsample(scores[classes > 0], image.shape[:2])
        return heat(image, foreground.max(axis=0) if len(foreground) else np.zeros(image.shape[:2], np.float32))

    return picture


def _labels_in(directory: Path) -> Callable[[Record, np.ndarray], np.ndarray]:
    """Sure foreground in its colour, sure background as it is, the unsure rest under a veil."""

    def picture(record: Record, image: np.ndarray) -> np.ndarray:
        labels = read_mask(directory / f"{record.id}.png")
        veiled = np.where((labels == IGNORE)[..., None], 0.3 * image + 0.7 * 255, image).astype(np.uint8)
        return overlay_mask(veiled, labels)

    return picture


def _boundary_in(path: Path) -> Callable[[Record, np.ndarray], np.ndarray]:
    def picture(record: Record, image: np.ndarray) -> np.ndarray:
        with ScoreStore(path) as store:
            return heat(image, upsample(store.read(record.id)[0], image.shape[:2])[0], opacity=0.9)

    return picture


def _mask_in(place: Path) -> Callable[[Record, np.ndarray], np.ndarray]:
    return lambda record, image: overlay_mask(image, read_mask_of(place, record.id))


def _prediction_of(model: Path, parameters: dict[str, Any]) -> Callable[[Record, np.ndarray], np.ndarray]:
    from wsss_core.engine.predictor import Predictor

    predictor = Predictor(model, parameters, device="cpu")
    return lambda _, image: overlay_mask(image, predictor.labels(image))


def _strips(split: str, records: Sequence[Record], columns: Sequence[Column], index: DataIndex) -> list[Strip]:
    strips = []
    for record in records:
        image = read_image(index.image_path(record))
        strips.append(Strip(split, record, _side_by_side([(title, make(record, image)) for title, make in columns])))
    return strips


def _side_by_side(pictures: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """Scale the pictures of one image to one height, titles above them."""
    height, width = pictures[0][1].shape[:2]
    size = (max(1, round(width * HEIGHT / height)), HEIGHT)
    strip = Image.new("RGB", (len(pictures) * (size[0] + GAP) - GAP, TITLE + HEIGHT), _WHITE)
    draw = ImageDraw.Draw(strip)
    for number, (title, pixels) in enumerate(pictures):
        left = number * (size[0] + GAP)
        strip.paste(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), (left, TITLE))
        draw.text((left, 2), title, _INK, _font())
    return strip


def _legend(labels: Sequence[int], index: DataIndex, width: int) -> Image.Image:
    """Draw a swatch and the name of each class, in as many lines as they need."""
    colours, font, line = palette().tolist(), _font(), 22
    places, left, top = [], 0, 0
    for label in labels:
        needed = 20 + int(font.getlength(index.classes[label])) + 18
        if left and left + needed > width:
            left, top = 0, top + line
        places.append((label, left, top))
        left += needed
    canvas = Image.new("RGB", (width, top + line), _WHITE)
    draw = ImageDraw.Draw(canvas)
    for label, x, y in places:
        draw.rectangle((x, y + 4, x + 13, y + 17), fill=tuple(colours[label]))
        draw.text((x + 20, y + 2), index.classes[label], _INK, font)
    return canvas


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(14)


def _page(record: dict[str, Any], index: DataIndex, strips: Sequence[Strip], places: Sequence[Path]) -> str:
    title = html.escape(f"{record['name']}, seed {record['seed']}")
    swatches = "\n".join(
        f'<li><span class="swatch" style="background: rgb{colour}"></span>{html.escape(name)}</li>'
        for colour, name in zip(map(tuple, palette(index.num_classes).tolist()), index.classes, strict=True)
    )
    sections: dict[str, list[str]] = {}
    for strip, place in zip(strips, places, strict=True):
        names = ", ".join(index.classes[label] for label in strip.record.labels) or "no object"
        caption = html.escape(f"{strip.record.id}: {names}")
        picture = base64.b64encode(place.read_bytes()).decode()
        figure = f'<figure><img src="data:image/png;base64,{picture}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        sections.setdefault(strip.split, []).append(figure)
    body = "\n".join(f"<h2>{html.escape(split)} images</h2>\n" + "\n".join(figures) for split, figures in sections.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gallery: {title}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{title}</h1>
<p>Data set {html.escape(record["dataset"])}. Images drawn at random; the captions give the image-level labels. Heat: score of the best
class, from dark blue (0) to yellow (1). The truth is shown for comparison alone.</p>
<ul class="legend">
{swatches}
</ul>
{body or "<p>No images.</p>"}
</body>
</html>
"""
