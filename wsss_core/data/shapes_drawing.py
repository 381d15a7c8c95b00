"""The brush of the made images: toys, what they stand on, backgrounds and clutter.

`wsss_core.data.shapes` decides what an image shows; this module draws it. All polygons are drawn enlarged by `SUPERSAMPLE`
and reduced, so edges are smooth; the mask comes from the same raster.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from wsss_core.data.shapes_toys import TOYS, Points, Toy, box, ellipse, polygon

SUPERSAMPLE = 3
SKY_HUES = (0.54, 0.58, 0.62, 0.06, 0.13, 0.8)
GROUND_HUES = (0.06, 0.1, 0.14, 0.2, 0.26, 0.32, 0.38)
Colour = tuple[int, int, int]


def placed(points: Points, x: float, y: float, size: float, angle: float, mirrored: bool) -> Points:
    """Return float[n, 2] pixel positions of a toy's polygon: scaled to `size` pixels, turned, standing on (x, y)."""
    local = points * ((-size / 2 if mirrored else size / 2), size / 2)
    sine, cosine = np.sin(angle), np.cos(angle)
    return local @ np.array([(cosine, sine), (-sine, cosine)]) + (x, y)


def body_colour(toy: Toy, rng: np.random.Generator) -> Colour:
    """Draw a colour of the toy's family."""
    return _hsv(rng.normal(*toy.hue), rng.uniform(*toy.saturation), rng.uniform(*toy.value))


def draw_toy(
    image: np.ndarray, mask: np.ndarray, toy: Toy, label: int, place: tuple[float, float, float, float, bool], rng: np.random.Generator
) -> None:
    """Draw a toy into float32[H, W, 3] in [0, 255] and its `label` into uint8[H, W], both in place.

    `place` is (x, y, size, angle, mirrored) as `placed` takes it.
    """
    height, width = mask.shape
    polygons = [placed(points, *place) for _, points in toy.layers]
    corners = np.concatenate(polygons)
    left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, (width, height))
    if right <= left or bottom <= top:
        return
    body = body_colour(toy, rng)
    canvas = ((right - left) * SUPERSAMPLE, (bottom - top) * SUPERSAMPLE)
    colours, silhouette = Image.new("RGB", canvas, body), Image.new("L", canvas)
    brushes = ImageDraw.Draw(colours), ImageDraw.Draw(silhouette)
    for (paint, _), points in zip(toy.layers, polygons, strict=True):
        corner_list = [tuple(point) for point in (points - (left, top)) * SUPERSAMPLE]
        brushes[0].polygon(corner_list, fill=_paint(paint, body))
        brushes[1].polygon(corner_list, fill=255)
    opacity = np.asarray(silhouette.reduce(SUPERSAMPLE), dtype=np.float32)[..., None] / 255
    painted = np.asarray(colours.reduce(SUPERSAMPLE), dtype=np.float32) * _texture(toy.texture, opacity.shape[:2], rng)[..., None]
    window = np.s_[top:bottom, left:right]
    image[window] = opacity * painted + (1 - opacity) * image[window]
    mask[window][opacity[..., 0] >= 0.5] = label


def draw_context(image: np.ndarray, context: str, x: float, y: float, size: float, rng: np.random.Generator) -> None:
    """Draw the rails or the water below a toy of `size` pixels that stands on (x, y), into float32[H, W, 3] in place."""
    height, width = image.shape[:2]
    reach = size * rng.uniform(0.7, 1.1)
    left, right = x - reach, x + reach
    if context == "rails":
        top, bottom = y - 0.05 * size, y + 0.14 * size
        gravel = _hsv(0.08, 0.12, rng.uniform(0.4, 0.6))
        shapes = [(polygon((left, top), (right, top), (right + 4, bottom), (left - 4, bottom)), gravel)]
        shapes += [(box(sleeper, top, sleeper + 0.06 * size, bottom), (76, 53, 38)) for sleeper in np.arange(left, right, 0.13 * size)]
        thickness = max(0.035 * size, 1)
        shapes += [(box(left, rail, right, rail + thickness), (205, 210, 220)) for rail in (y - 0.015 * size, y + 0.07 * size)]
    else:
        top, bottom = y - 0.12 * size, y + rng.uniform(0.18, 0.3) * size
        tone = rng.uniform(0.52, 0.58), rng.uniform(0.45, 0.7)
        shapes = [(ellipse(x, (top + bottom) / 2, reach * 1.1, (bottom - top) / 2), _hsv(*tone, rng.uniform(0.55, 0.8)))]
        for across, down in rng.uniform((-0.8, 0.2), (0.6, 0.85), (9, 2)):
            wave_x, wave_y = x + across * reach, top + down * (bottom - top)
            shapes.append((box(wave_x, wave_y, wave_x + 0.2 * size, wave_y + 0.025 * size), _hsv(*tone, 0.95)))
    _composite(image, shapes, (0, int(max(top - 2, 0)), width, int(min(bottom + 3, height))))


def draw_background(size: int, horizon: float, clutter: float, rng: np.random.Generator) -> np.ndarray:
    """Return a textured float32[size, size, 3] in [0, 255]: sky above `horizon` (a share of the height), ground, and things on them.

    `clutter` in [0, 1] sets the strength of the texture and the number of clouds, hills, trees, bushes, stones, fences and flowers.
    """
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) / size
    sky = np.array(_hsv(rng.choice(SKY_HUES) + rng.normal(0, 0.015), rng.uniform(0.08, 0.32), rng.uniform(0.75, 0.97)), dtype=np.float32)
    ground = np.array(_hsv(rng.choice(GROUND_HUES) + rng.normal(0, 0.02), rng.uniform(0.2, 0.5), rng.uniform(0.4, 0.75)), dtype=np.float32)
    edge = horizon + rng.uniform(0.01, 0.07) * np.sin(2 * np.pi * (rng.uniform(0.4, 1.3) * columns + rng.random()))
    image = np.where((rows > edge)[..., None], ground * (0.8 + 0.4 * rows[..., None]), sky * (0.85 + 0.4 * rows[..., None]))
    noise = smooth_noise((size, size), int(rng.integers(4, 9)), rng) * 12 + smooth_noise((size, size), 28, rng) * 7
    if rng.random() < 0.4:
        angle, frequency = rng.uniform(-0.5, 0.5), rng.uniform(8, 16)
        noise += (rows > edge) * 10 * np.sin(2 * np.pi * frequency * (np.sin(angle) * columns + np.cos(angle) * rows))
    image += ((0.4 + clutter) * noise)[..., None]
    shapes = [shape for _ in range(rng.poisson(18 * clutter)) for shape in _clutter(size, horizon, rng)]
    _composite(image, shapes, (0, 0, size, size))
    return image


def smooth_noise(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    """Return float32[H, W] noise of about unit variance with `cells` bumps along the side."""
    grid = rng.standard_normal((max(cells, 2), max(cells, 2)), dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _clutter(size: int, horizon: float, rng: np.random.Generator) -> list[tuple[Points, Colour]]:
    x, y, radius = rng.uniform(0, size), rng.uniform(0, size), size * rng.uniform(0.03, 0.09)
    if rng.random() < 0.4:  # the colour of a body, so that colour alone does not tell an object
        colour = body_colour(TOYS[rng.integers(len(TOYS))], rng)
    else:
        colour = _hsv(rng.random(), rng.uniform(0.1, 0.45), rng.uniform(0.35, 0.8))
    green = _hsv(rng.uniform(0.2, 0.42), rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.6))
    kind = rng.random()
    if y < horizon * size:
        if kind < 0.5:  # a cloud
            heights = y + rng.uniform(-0.3, 0.3, 3) * radius
            return [(ellipse(x + i * radius, height, radius, 0.6 * radius, 12), (232, 238, 246)) for i, height in enumerate(heights)]
        if kind < 0.8:  # a hill
            return [(polygon((x - 3 * radius, horizon * size), (x, y), (x + 3 * radius, horizon * size)), colour)]
        y = horizon * size  # a tree
        crown = [
            (ellipse(x + dx, y - 2.5 * radius + dy, radius, corners=10), _shaded(green, rng.uniform(0.85, 1.15)))
            for dx, dy in rng.uniform(-0.7, 0.7, (5, 2)) * radius
        ]
        return [(box(x - 0.2 * radius, y - 2.5 * radius, x + 0.2 * radius, y + 0.5 * radius), _hsv(0.07, 0.45, 0.35)), *crown]
    if kind < 0.35:  # a bush
        offsets = rng.uniform(-1, 1, (5, 2)) * (1.2 * radius, 0.6 * radius)
        return [(ellipse(x + dx, y + dy, 0.7 * radius, corners=10), _shaded(green, rng.uniform(0.85, 1.15))) for dx, dy in offsets]
    if kind < 0.65:  # a stone
        return [(ellipse(x, y, radius, 0.6 * radius, int(rng.integers(5, 10))), colour)]
    if kind < 0.8:  # a fence
        posts = [(box(x + i * radius, y - radius, x + (i + 0.25) * radius, y + 0.5 * radius), colour) for i in range(4)]
        return [*posts, (box(x, y - 0.6 * radius, x + 3.2 * radius, y - 0.35 * radius), colour)]
    flower = _hsv(rng.random(), 0.7, 0.95)
    return [(ellipse(x + dx, y + dy, 0.014 * size, corners=8), flower) for dx, dy in rng.uniform(-1.5, 1.5, (5, 2)) * radius]


def _composite(image: np.ndarray, shapes: Sequence[tuple[Points, Colour]], window: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = window
    if not shapes or right <= left or bottom <= top:
        return
    canvas = ((right - left) * SUPERSAMPLE, (bottom - top) * SUPERSAMPLE)
    colours, silhouette = Image.new("RGB", canvas), Image.new("L", canvas)
    brushes = ImageDraw.Draw(colours), ImageDraw.Draw(silhouette)
    for points, colour in shapes:
        corners = [tuple(point) for point in (points - (left, top)) * SUPERSAMPLE]
        brushes[0].polygon(corners, fill=colour)
        brushes[1].polygon(corners, fill=255)
    # The colours lie on black: reduced, they are already multiplied by the opacity.
    opacity = np.asarray(silhouette.reduce(SUPERSAMPLE), dtype=np.float32)[..., None] / 255
    area = image[top:bottom, left:right]
    image[top:bottom, left:right] = np.asarray(colours.reduce(SUPERSAMPLE), dtype=np.float32) + (1 - opacity) * area


def _texture(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    rows, columns = rows / max(shape), columns / max(shape)
    light = 1.05 - 0.1 * rows + 0.02 * smooth_noise(shape, 5, rng)
    if kind == "stripes":
        light += 0.05 * np.sign(np.sin(70 * columns))
    elif kind == "planks":
        light += 0.05 * np.sign(np.sin(55 * rows))
    elif kind == "wool":
        light += 0.05 * smooth_noise(shape, 14, rng)
    elif kind == "speckles":
        light += 0.06 * np.sign(smooth_noise(shape, 18, rng) - 0.8)
    return light


def _paint(paint: str, body: Colour) -> Colour:
    if paint.startswith("#"):
        return int(paint[1:3], 16), int(paint[3:5], 16), int(paint[5:7], 16)
    return _shaded(body, {"body": 1.0, "shade": 0.88, "dark": 0.78, "light": 1.2}[paint])


def _shaded(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(min(channel * factor, 255)) for channel in colour)
    return red, green, blue


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(float(hue) % 1, float(saturation), float(value))
    return int(255 * red), int(255 * green), int(255 * blue)
