"""Made inputs that behave like real ones: smooth score maps, label maps with regions, images with the spectrum of photographs. Seeded."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

VOC_SIZE = (375, 500)
"""(H, W) of many images of PASCAL VOC."""


def smooth(channels: int, size: tuple[int, int], seed: int, scale: float = 1 / 12) -> np.ndarray:
    """Smooth random maps float32[C, H, W], each from 0 to 1; `scale` is the size of what is to be seen, as part of the longer side."""
    noise = np.random.default_rng(seed).standard_normal((channels, *size), dtype=np.float32)
    maps = np.stack([gaussian_filter(channel, scale * max(size)) for channel in noise])
    maps -= maps.min(axis=(1, 2), keepdims=True)
    return maps / maps.max(axis=(1, 2), keepdims=True)


def cams(channels: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """Class activation maps float32[K, H, W] in [0, 1]: blobs on zero."""
    maps = np.maximum(smooth(channels, size, seed) - np.float32(0.45), 0)
    return maps / maps.max(axis=(1, 2), keepdims=True)


def regions(classes: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """A label map uint8[H, W] of smooth regions, 0..C-1."""
    return smooth(classes, size, seed).argmax(axis=0).astype(np.uint8)


def truth(classes: int, size: tuple[int, int], seed: int) -> np.ndarray:
    """True masks as those of VOC, uint8[H, W]: mostly background, a few classes, 255 along their borders."""
    labels = regions(5, size, seed)
    names = np.array([0, 0, *np.random.default_rng(seed).permutation(np.arange(1, classes))[:3]], np.uint8)
    labels = names[labels]
    edge = (gaussian_filter(labels.astype(np.float32), 1.5) - labels).__abs__() > 0.05
    return np.where(edge, np.uint8(255), labels)


def photograph(size: tuple[int, int], seed: int) -> np.ndarray:
    """An image uint8[H, W, 3]: coloured regions, texture over several octaves, a little noise."""
    rng = np.random.default_rng(seed)
    colours = rng.uniform(40, 210, (6, 3)).astype(np.float32)
    image = colours[regions(6, size, seed + 1)]
    for octave in range(1, 6):
        sigma = 2.0**octave
        texture = gaussian_filter(rng.standard_normal((*size, 3), dtype=np.float32), (sigma, sigma, 0))
        image += 5 * octave**0.5 * texture / texture.std()
    image += rng.normal(0, 3, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def pair_affinities(offsets: list[tuple[int, int]], size: tuple[int, int], seed: int) -> np.ndarray:
    """Affinities float32[K, H, W] of the pairs (p, p + offset): exp(-L1 distance) of features that jump where regions meet."""
    labels = regions(5, size, seed)
    features = smooth(8, size, seed + 1) + np.random.default_rng(seed).uniform(0, 1.5, (5, 8)).astype(np.float32)[labels].transpose(2, 0, 1)
    affinities = np.zeros((len(offsets), *size), np.float32)
    for target, (dy, dx) in zip(affinities, offsets, strict=True):
        ys, xs = (slice(max(-d, 0), side - max(d, 0)) for d, side in zip((dy, dx), size, strict=True))
        there = features[:, ys.start + dy : ys.stop + dy, xs.start + dx : xs.stop + dx]
        target[ys, xs] = np.exp(-np.abs(features[:, ys, xs] - there).mean(axis=0))
    return affinities
