"""BEACON's points against Algorithm 2 in a loop, and on drawn shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsss_core.losses.beacon import boundary_points

NEIGHBOURS = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]  # by angle, y down, in steps of 45 degrees
Point = tuple[int, int]


def drawn(labels: Tensor, classes: int = 2) -> Tensor:
    return torch.nn.functional.one_hot(labels.long(), classes).permute(2, 0, 1).float()


def listed(points: Tensor) -> list[Point]:
    return [tuple(point) for point in points.tolist()]


def pairs(segmentation: Tensor, **options: object) -> set[tuple[Point, Point]]:
    inward, outward = boundary_points(segmentation, **options)  # type: ignore[arg-type]
    assert inward.dtype == outward.dtype == torch.int64 and inward.shape == outward.shape == (len(inward), 2)
    return set(zip(listed(inward), listed(outward), strict=True))


def middles(found: set[tuple[Point, Point]]) -> set[Point]:
    return {((a + c) // 2, (b + d) // 2) for (a, b), (c, d) in found}


def looped_points(segmentation: Tensor, steps: int, share: float, ignore: Tensor | None) -> tuple[list[Point], list[Point]]:
    """Algorithm 2, point by point, on gradients cell by cell."""
    classes, height, width = segmentation.shape
    kernel = [(-1, -1, 1), (0, -1, 2), (1, -1, 1), (-1, 1, -1), (0, 1, -2), (1, 1, -1)]  # along the way, across it: weight

    def value(c: int, y: int, x: int) -> float:
        return float(segmentation[c, min(max(y, 0), height - 1), min(max(x, 0), width - 1)])

    orientation: dict[Point, tuple[float, float, float]] = {}
    for y in range(height):
        for x in range(width):
            gradients = []
            for c in range(1, classes):
                down = sum(-w * value(c, y + along, x + across) for across, along, w in kernel)
                right = sum(-w * value(c, y + across, x + along) for across, along, w in kernel)
                gradients.append((down**2 + right**2, value(c, y, x), down, right))
            magnitude, _, down, right = max(gradients, key=lambda gradient: gradient[:2])
            orientation[y, x] = magnitude, -down, -right
    limit = sorted((m for m, _, _ in orientation.values()), reverse=True)[max(1, round(share * height * width)) - 1]
    inward, outward = [], []
    for (y, x), (magnitude, down, right) in orientation.items():
        if magnitude < limit or magnitude == 0:
            continue
        qy, qx = NEIGHBOURS[round(math.atan2(down, right) / (math.pi / 4)) % 8]
        phi, psi = (y - steps * qy, x - steps * qx), (y + steps * qy, x + steps * qx)
        inside = all(0 <= a < height and 0 <= b < width for a, b in (phi, psi))
        if inside and not (ignore is not None and (ignore[phi] or ignore[psi])):
            inward.append(phi)
            outward.append(psi)
    return inward, outward


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(("steps", "share"), [(1, 0.2), (2, 0.5), (3, 1.0)])
def test_points_are_those_of_the_loop(seed: int, hard: bool, steps: int, share: float) -> None:
    torch.manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.randn(1, 4, 4, 5, dtype=torch.float64), size=(11, 14), mode="bicubic")[0]
    segmentation = drawn(smooth.argmax(dim=0), 4).double() if hard else (3 * smooth).softmax(dim=0)
    ignore = torch.rand(11, 14) < 0.1 if seed % 2 else None
    inward, outward = boundary_points(segmentation, steps=steps, share=share, ignore=ignore)
    assert (listed(inward), listed(outward)) == looped_points(segmentation, steps, share, ignore)
    assert len(inward) > 5


@pytest.mark.parametrize("direction", NEIGHBOURS)
@pytest.mark.parametrize("steps", [1, 3])
def test_outward_is_out_of_the_object_in_all_eight_directions(direction: Point, steps: int) -> None:
    y, x = torch.meshgrid(torch.arange(15) - 7, torch.arange(17) - 8, indexing="ij")
    qy, qx = direction
    inside = {(p, x) for p in range(steps, 15 - steps) for x in range(steps, 17 - steps)}  # at the border the slope is cut
    found = [pair for pair in pairs(drawn(qy * y + qx * x <= 0), steps=steps) if middles({pair}) <= inside]
    assert {(c - a, d - b) for (a, b), (c, d) in found} == {(2 * steps * qy, 2 * steps * qx)}
    assert middles(set(found)) >= {(p, x) for p, x in inside if 0 <= qy * (p - 7) + qx * (x - 8) <= 1}


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("off", [-22, 0, 22])
def test_bins_of_45_degrees_are_centred_on_the_directions(number: int, off: int) -> None:
    angle = math.radians(45 * number + off)
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    falling = 0.5 - 0.02 * (math.sin(angle) * (y - 4) + math.cos(angle) * (x - 4))
    qy, qx = NEIGHBOURS[number]
    assert ((4 - qy, 4 - qx), (4 + qy, 4 + qx)) in pairs(torch.stack([1 - falling, falling]), steps=1, share=1.0)


def test_the_border_of_the_image_is_no_boundary() -> None:
    labels = torch.zeros(12, 9)
    labels[:5] = 1  # touches three sides
    expected = {((p - 2, x), (p + 2, x)) for p in (4, 5) for x in range(9)}
    assert pairs(drawn(labels), steps=2) == expected
    assert pairs(drawn(torch.ones(6, 6)), steps=1) == set()


def test_pairs_off_the_image_are_dropped() -> None:
    labels = torch.zeros(12, 9)
    labels[:2] = 1  # boundary points are rows 1 and 2
    assert middles(pairs(drawn(labels), steps=1)) == {(p, x) for p in (1, 2) for x in range(9)}
    assert middles(pairs(drawn(labels), steps=2)) == {(2, x) for x in range(9)}
    assert pairs(drawn(labels), steps=3) == set()
    assert pairs(drawn(labels.flip(0)), steps=3) == set()
    assert pairs(drawn(labels.T), steps=3) == set()


def test_pairs_on_ignored_pixels_are_dropped_but_a_boundary_may_be_ignored_itself() -> None:
    labels = torch.zeros(12, 9)
    labels[:6] = 1
    ignore = torch.zeros(12, 9, dtype=torch.bool)
    ignore[5:7] = True  # a band over the boundary points, as around the objects of VOC
    assert len(pairs(drawn(labels), steps=2, ignore=ignore)) == 18
    ignore[3, 0] = ignore[8, 1] = True  # the inward point of (5, 0), the outward one of (6, 1)
    dropped = pairs(drawn(labels), steps=2) - pairs(drawn(labels), steps=2, ignore=ignore)
    assert middles(dropped) == {(5, 0), (6, 1)}


def test_a_single_pixel_is_inward_of_all_its_neighbours() -> None:
    labels = torch.zeros(9, 9)
    labels[4, 4] = 1
    assert pairs(drawn(labels), steps=1) == {((4, 4), (4 + 2 * y, 4 + 2 * x)) for y, x in NEIGHBOURS}


def test_flat_maps_have_no_points() -> None:
    assert pairs(drawn(torch.zeros(8, 8)), steps=1) == set()
    assert pairs(torch.full((3, 8, 8), 1 / 3), steps=1, share=1.0) == set()


def touching() -> Tensor:
    labels = torch.ones(10, 10)
    labels[:, 5:] = 2
    return drawn(labels, 3)


def test_touching_objects_have_a_boundary_of_which_each_owns_its_side() -> None:
    expected = {((y, 4 - 3), (y, 4 + 3)) for y in range(10)} | {((y, 5 + 3), (y, 5 - 3)) for y in range(10)}
    assert pairs(touching(), steps=3) == expected


def test_class_numbers_mean_nothing() -> None:
    torch.manual_seed(0)
    for segmentation in (touching(), torch.randn(5, 12, 12).softmax(dim=0)):
        order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(len(segmentation) - 1)])
        other = segmentation.clone().index_copy_(0, order, segmentation)
        assert pairs(other, steps=2) == pairs(segmentation, steps=2) != set()


def test_only_the_largest_gradients_count_and_ties_are_all_in() -> None:
    ramp = torch.cat([torch.zeros(4), torch.arange(1, 9) ** 2 / 100, torch.full((8,), 0.64)]).expand(20, 20)
    found = pairs(torch.stack([1 - ramp, ramp]), steps=1)  # 20 % are 80 pixels, 4 columns of one gradient each
    assert {x for _, x in middles(found)} == {7, 8, 9, 10}
    fewer = pairs(torch.stack([1 - ramp, ramp]), steps=1, share=0.16)  # 64 pixels: a fourth column is cut into, and stays whole
    assert fewer == found


def test_wrong_arguments() -> None:
    for segmentation, options in (
        (touching()[:1], {}),
        (touching(), {"steps": 0}),
        (touching(), {"share": 0.0}),
        (touching(), {"share": 1.5}),
    ):
        with pytest.raises(ValueError, match="expected"):
            boundary_points(segmentation, **options)
