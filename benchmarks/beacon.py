"""BEACON (MuSCLe): the points on both sides of the boundaries of one segmentation map."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import inputs
from benchmarks.harness import Forms, HotSpot, Setup
from wsss_core.losses.beacon import boundary_points

STEPS, SHARE = 7, 0.2
NEIGHBOURS = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]
Points = tuple[Tensor, Tensor]


def orientation_map(segmentation: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitude [H, W] and orientation [H, W] out of the object, of the class with the largest gradient: Sobel as one convolution."""
    down = torch.tensor([[-1.0, -2.0, -1.0], [0.0, 0.0, 0.0], [1.0, 2.0, 1.0]])
    kernels = torch.stack([down, down.T])[:, None]
    padded = functional.pad(segmentation[1:, None], (1, 1, 1, 1), mode="replicate")
    gradients = functional.conv2d(padded, kernels)
    magnitude, owner = gradients.norm(dim=1).max(dim=0)
    dy, dx = gradients.gather(0, owner[None, None].expand(1, 2, -1, -1))[0]
    return magnitude, torch.atan2(-dy, -dx)


def looped_points(segmentation: Tensor) -> Points:
    """Algorithm 2 as printed: one point after the other; with our limits (image, pairs)."""
    magnitude, orientation = orientation_map(segmentation)
    height, width = magnitude.shape
    limit = magnitude.flatten().sort(descending=True).values[round(SHARE * height * width) - 1]
    inward, outward = [], []
    for y, x in ((magnitude >= limit) & (magnitude > 0)).nonzero().tolist():
        qy, qx = NEIGHBOURS[round(float(orientation[y, x]) / (math.pi / 4)) % 8]
        phi, psi = (y - STEPS * qy, x - STEPS * qx), (y + STEPS * qy, x + STEPS * qx)
        if all(0 <= a < height and 0 <= b < width for a, b in (phi, psi)):
            inward.append(phi)
            outward.append(psi)
    return torch.tensor(inward).view(-1, 2), torch.tensor(outward).view(-1, 2)


def different_pairs(expected: Points, ours: Points) -> float:
    """Part of the pairs that only one form has."""
    one, other = ({(*i, *o) for i, o in zip(*(side.tolist() for side in points), strict=True)} for points in (expected, ours))
    return len(one ^ other) / max(1, len(one))


def points(setup: Setup) -> Forms:
    """A crop of 448 pixels, 21 classes, in the course of training: smooth scores of stride 4, enlarged."""
    cells = (14, 14) if setup.tiny else (112, 112)
    logits = torch.from_numpy(12 * inputs.smooth(21, cells, 30))
    segmentation = functional.interpolate(logits[None], scale_factor=4, mode="bilinear", align_corners=False)[0].softmax(dim=0)
    # float32 in another order puts a few points on the other side of a limit
    return Forms(
        {"loop": partial(looped_points, segmentation)},
        partial(boundary_points, segmentation, steps=STEPS, share=SHARE),
        different_pairs,
        tolerance=0.005,
    )


HOT_SPOTS = [
    HotSpot(
        "beacon-points",
        "BEACON's in/outward points, 448x448, 21 classes",
        "Sobel by convolution, one point after the other",
        "shifted views, all points at once",
        target=25,
        best=34,
        agreement="part of the pairs that only one form has",
        make=points,
    ),
]
