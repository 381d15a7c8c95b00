"""The toys of the made images: what an object of each class looks like, as polygons in its own unit square.

A toy is a stack of polygons: a large plain body, whose colour varies about the class's family, and one small striking part in
fixed colours, on which a classifier latches. `wsss_core.data.shapes_drawing` draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

Points = np.ndarray


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """Return a rectangle as float[4, 2] (x, y)."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def ellipse(x: float, y: float, width: float, height: float | None = None, corners: int = 24) -> Points:
    """Return an ellipse about (x, y) with half axes `width` and `height` (unset: a circle) as float[corners, 2]."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + width * np.cos(angles), y + (height or width) * np.sin(angles)], axis=1)


def polygon(*points: tuple[float, float]) -> Points:
    """Return float[n, 2] of n points (x, y)."""
    return np.array(points)


@dataclass(frozen=True)
class Toy:
    """One class of objects.

    Attributes
    ----------
    name
        Name of the class.
    hue
        Centre of the body's colour family in [0, 1), and the standard deviation about it.
    saturation, value
        Ranges of the body's colour in [0, 1].
    layers
        (paint, polygon) from back to front. The polygons are float[n, 2] (x, y), x in [-1, 1] and y from -2 (top) to 0, the line
        the toy stands on. The paints ``body``, ``shade``, ``dark`` and ``light`` follow the drawn body colour; a colour
        ``#rrggbb`` is fixed and belongs to the striking part.
    texture
        What lies on the whole toy: plain, stripes, planks, wool or speckles.
    tilt
        Largest rotation in degrees to either side.
    context
        What the class often comes with, drawn as background: rails or water.
    flies
        Whether it may be in the sky.
    """

    name: str
    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]
    layers: tuple[tuple[str, Points], ...]
    texture: str = "plain"
    tilt: float = 5.0
    context: str | None = None
    flies: bool = False

    @cached_property
    def height(self) -> float:
        """Height in units of half the width."""
        return -float(min(points[:, 1].min() for _, points in self.layers))


def _train() -> Toy:
    warning = [("#101010", polygon((0.62, y), (0.99, y - 0.16), (0.99, y - 0.06), (0.62, y + 0.10))) for y in (-0.38, -0.16)]
    layers = [
        *(("dark", ellipse(x, -0.15, 0.15)) for x in (-0.75, -0.4, 0.2, 0.55)),
        ("body", polygon((-1, -0.12), (-1, -1.0), (0.72, -1.0), (0.98, -0.72), (1.0, -0.12))),
        ("dark", polygon((-0.96, -1.0), (-0.9, -1.1), (0.6, -1.1), (0.72, -1.0))),
        *(("light", box(x, -0.85, x + 0.26, -0.58)) for x in (-0.88, -0.5, -0.12)),
        ("#ffd400", polygon((0.62, -0.12), (0.62, -0.62), (0.99, -0.62), (1.0, -0.12))),
        *warning,
        ("#ffffff", ellipse(0.82, -0.74, 0.13)),
        ("#d00000", ellipse(0.82, -0.74, 0.06)),
    ]
    return Toy("train", (0.98, 0.06), (0.45, 0.75), (0.45, 0.75), tuple(layers), "stripes", 2.0, "rails")


def _boat() -> Toy:
    layers = [
        ("body", polygon((-1.0, -0.55), (1.0, -0.55), (0.7, 0.0), (-0.7, 0.0))),
        ("dark", polygon((-1.0, -0.55), (1.0, -0.55), (0.95, -0.45), (-0.95, -0.45))),
        ("dark", box(-0.04, -1.95, 0.04, -0.55)),
        ("body", polygon((-0.08, -1.75), (-0.08, -0.66), (-0.9, -0.66))),
        ("light", polygon((0.1, -1.4), (0.1, -0.66), (0.75, -0.66))),
        ("#ffffff", polygon((0.0, -1.95), (0.5, -1.8), (0.5, -1.5), (0.0, -1.6))),
        ("#e00020", polygon((0.0, -1.95), (0.25, -1.875), (0.25, -1.71), (0.0, -1.775))),
        ("#e00020", polygon((0.25, -1.71), (0.5, -1.65), (0.5, -1.5), (0.25, -1.55))),
    ]
    return Toy("boat", (0.1, 0.06), (0.3, 0.6), (0.5, 0.85), tuple(layers), "planks", 4.0, "water")


def _car() -> Toy:
    layers: list[tuple[str, Points]] = [
        ("body", polygon((-1, -0.18), (-1, -0.55), (-0.62, -0.62), (-0.38, -1.02), (0.36, -1.02), (0.62, -0.62), (1, -0.5), (1, -0.18))),
        ("light", polygon((-0.5, -0.63), (-0.32, -0.93), (-0.03, -0.93), (-0.03, -0.63))),
        ("light", polygon((0.05, -0.63), (0.05, -0.93), (0.3, -0.93), (0.48, -0.63))),
    ]
    for x in (-0.55, 0.55):
        layers += [("#0a0a0a", ellipse(x, -0.21, 0.21)), ("#f5f5f5", ellipse(x, -0.21, 0.12)), ("#0a0a0a", ellipse(x, -0.21, 0.045))]
    return Toy("car", (0.62, 0.08), (0.4, 0.75), (0.45, 0.8), tuple(layers), "plain", 5.0)


def _bird() -> Toy:
    layers = [
        ("dark", polygon((-0.75, -0.75), (-1.0, -1.1), (-0.98, -0.62))),
        ("body", ellipse(-0.15, -0.7, 0.72, 0.5)),
        ("body", ellipse(0.5, -1.2, 0.36)),
        ("body", polygon((-0.2, -1.15), (0.35, -1.5), (0.75, -0.95), (0.4, -0.4))),
        ("shade", polygon((-0.65, -0.75), (0.15, -0.85), (-0.05, -0.5), (-0.45, -0.45))),
        ("dark", box(-0.2, -0.24, -0.13, 0)),
        ("dark", box(0.08, -0.24, 0.15, 0)),
        ("#ff8c00", polygon((0.74, -1.42), (1.0, -1.15), (0.76, -1.02))),
        ("#ffffff", ellipse(0.58, -1.27, 0.17)),
        ("#000000", ellipse(0.61, -1.27, 0.09)),
    ]
    return Toy("bird", (0.45, 0.08), (0.35, 0.65), (0.45, 0.75), tuple(layers), "speckles", 14.0, flies=True)


def _sheep() -> Toy:
    puffs = [ellipse(0.68 * np.cos(a) - 0.15, -0.78 + 0.4 * np.sin(a), 0.3) for a in np.linspace(0, 2 * np.pi, 9, endpoint=False)]
    layers = [
        *(("dark", box(x, -0.4, x + 0.13, 0)) for x in (-0.62, -0.3, 0.05, 0.3)),
        *(("body", puff) for puff in puffs),
        ("body", ellipse(-0.15, -0.78, 0.72, 0.45)),
        ("#1a1a22", ellipse(0.72, -1.0, 0.26, 0.33)),
        ("#ff9fb5", ellipse(0.78, -0.8, 0.13, 0.1)),
        ("#1a1a22", polygon((0.5, -1.15), (0.36, -1.42), (0.68, -1.26))),
        ("#ffffff", ellipse(0.76, -1.08, 0.08)),
    ]
    return Toy("sheep", (0.12, 0.05), (0.1, 0.28), (0.75, 0.95), tuple(layers), "wool", 6.0)


def _house() -> Toy:
    layers = [
        ("body", box(-0.8, -1.05, 0.8, 0)),
        ("dark", polygon((-1.0, -1.0), (0.0, -1.8), (1.0, -1.0))),
        ("light", box(-0.62, -0.75, -0.2, -0.4)),
        ("#00a0ff", box(0.12, -0.78, 0.58, 0)),
        ("#ffffff", box(0.2, -0.68, 0.5, -0.36)),
        ("#ff2060", ellipse(0.35, -0.2, 0.1)),
    ]
    return Toy("house", (0.83, 0.06), (0.15, 0.4), (0.5, 0.8), tuple(layers), "planks", 2.0)


# Neighbours (0 and 1, 2 and 3, 4 and 5) are the classes that often come together.
TOYS: tuple[Toy, ...] = (_train(), _car(), _boat(), _bird(), _sheep(), _house())
