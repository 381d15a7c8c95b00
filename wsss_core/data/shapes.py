"""Made images for the demonstration: toy objects with the difficulties of weak supervision built in.

Each class has one small striking part, which a classifier finds first, and a large plain body, which refinement has to
recover; the train comes with rails and the boat with water, which are background; classes come together, objects overlap, and the
background holds clutter in the colours of the bodies. An image depends on (seed, split, number) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss_core.config.datasets import Shapes
from wsss_core.data.images import read_mask, save_mask
from wsss_core.data.index import PREPARED, DataIndex, Record
from wsss_core.data.shapes_drawing import draw_background, draw_context, draw_toy
from wsss_core.data.shapes_toys import TOYS
from wsss_core.files import atomic_path

SPLITS = ("train", "val")
# Chance that the next object is of the class that goes with the first one.
TOGETHER = 0.4
# Range of a lone object's width as a share of the image's.
OBJECT_SIDE = (0.4, 0.65)


@dataclass(frozen=True)
class Placed:
    """One object of an image: its class in [1, C-1], the point (x, y) it stands on and its size in pixels, its angle in radians."""

    label: int
    x: float
    y: float
    size: float
    angle: float
    mirrored: bool
    context: bool
    """Whether the class's context is drawn with it; never for a class without one."""


@dataclass(frozen=True)
class Scene:
    """What an image shows: the height of the horizon as a share of the image's, and the objects from back to front."""

    horizon: float
    objects: tuple[Placed, ...]


def class_names(dataset: Shapes) -> tuple[str, ...]:
    """Return the names of the classes, background first."""
    return ("background", *(toy.name for toy in TOYS[: dataset.classes]))


def compose(dataset: Shapes, split: str, number: int) -> Scene:
    """Decide what image `number` of `split` shows; a share `dataset.empty` of the images shows no object."""
    rng = _generator(dataset, split, number, "compose")
    horizon = float(rng.uniform(0.2, 0.5))
    if rng.random() < dataset.empty:
        return Scene(horizon, ())
    count = int(rng.integers(dataset.objects[0], dataset.objects[1] + 1))
    first = int(rng.integers(dataset.classes))
    objects: list[Placed] = []
    for position in range(count):
        kind = first
        if position:
            partner = first ^ 1
            kind = partner if partner < dataset.classes and rng.random() < TOGETHER else int(rng.integers(dataset.classes))
        objects.append(_place(dataset, kind, count, horizon, objects, rng))
    return Scene(horizon, tuple(sorted(objects, key=lambda placed: placed.y)))


def draw(dataset: Shapes, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image.

    Returns
    -------
    image
        uint8[H, W, 3], H = W = `dataset.size`.
    mask
        uint8[H, W], 0 where background (rails and water too), c in [1, C-1] where the front object is of class c.
    """
    rng = _generator(dataset, split, number, "draw")
    scene = compose(dataset, split, number)
    image = draw_background(dataset.size, scene.horizon, dataset.clutter, rng)
    mask = np.zeros((dataset.size, dataset.size), dtype=np.uint8)
    for placed in scene.objects:
        context = TOYS[placed.label - 1].context
        if placed.context and context:
            draw_context(image, context, placed.x, placed.y, placed.size, rng)
    for placed in scene.objects:
        place = (placed.x, placed.y, placed.size, placed.angle, placed.mirrored)
        draw_toy(image, mask, TOYS[placed.label - 1], placed.label, place, rng)
    image *= rng.uniform(0.9, 1.08)
    image += rng.standard_normal(image.shape, dtype=np.float32) * 3
    return np.clip(image, 0, 255).astype(np.uint8), mask


def build_index(dataset: Shapes, prepared: Path, track: Callable[..., Iterable[Any]]) -> DataIndex:
    """Draw all images into `prepared`, except those that are there already, and return their index.

    `track(iterable, what, total)` gives the iterable back and shows progress.
    """
    numbers = [(split, number) for split in SPLITS for number in range(getattr(dataset, split))]
    splits: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for split, number in track(numbers, "drawing images", len(numbers)):
        name = f"{split}_{number:05d}"
        image_path, mask_path = prepared / "images" / f"{name}.png", prepared / "masks" / f"{name}.png"
        if image_path.exists() and mask_path.exists():
            mask = read_mask(mask_path, dataset.classes + 1)
        else:
            image, mask = draw(dataset, split, number)
            with atomic_path(image_path) as temporary:
                Image.fromarray(image).save(temporary, format="PNG", compress_level=1)
            with atomic_path(mask_path) as temporary:
                save_mask(temporary, mask)
        labels = tuple(int(label) for label in np.unique(mask) if label)
        splits[split].append(Record(name, f"{PREPARED}images/{name}.png", labels, f"{PREPARED}masks/{name}.png"))
    records = {split: tuple(rows) for split, rows in splits.items()}
    return DataIndex(class_names(dataset), records, "made with the images", None, prepared)


def _generator(dataset: Shapes, split: str, number: int, purpose: str) -> np.random.Generator:
    key = (SPLITS.index(split), number, ("compose", "draw").index(purpose))
    return np.random.default_rng(np.random.SeedSequence(dataset.seed, spawn_key=key))


def _place(dataset: Shapes, kind: int, count: int, horizon: float, others: list[Placed], rng: np.random.Generator) -> Placed:
    toy, side = TOYS[kind], dataset.size
    size = side * rng.uniform(*OBJECT_SIDE) * min(1.1 / count**0.35, 1.0)
    half, height = size / 2, toy.height * size / 2
    angle = np.deg2rad(rng.uniform(-toy.tilt, toy.tilt))
    mirrored, context = bool(rng.random() < 0.5), bool(rng.random() < dataset.context) and toy.context is not None
    # Of a few places take the one where least hides another object or hangs in the air.
    places = rng.uniform((0.9 * half, height), (side - 0.9 * half, 0.97 * side), (12, 2))
    costs = [sum(_overlap((x, y, half, height), other) for other in others) for x, y in places]
    if not toy.flies:
        costs = [cost + size * max(horizon * side + 0.05 * side - y, 0) for cost, (_, y) in zip(costs, places, strict=True)]
    x, y = places[int(np.argmin(costs))]
    return Placed(kind + 1, float(x), float(y), float(size), float(angle), mirrored, context)


def _overlap(box: tuple[float, float, float, float], other: Placed) -> float:
    """Return the area in square pixels that a box (middle x, bottom y, half width, height) shares with the box of an object."""
    x, bottom, half, height = box
    across = min(x + half, other.x + other.size / 2) - max(x - half, other.x - other.size / 2)
    down = min(bottom, other.y) - max(bottom - height, other.y - TOYS[other.label - 1].height * other.size / 2)
    return max(across, 0.0) * max(down, 0.0)
