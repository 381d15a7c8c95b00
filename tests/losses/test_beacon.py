"""BEACON against Algorithms 1 to 3 in loops, and its points on drawn shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsss_core.losses.beacon import beacon_loss, boundary_points, point_contrast

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


def printed_sign(s_m: float, s_d: float, tau: float) -> int:
    """Algorithm 3 for one point: the binary cases, two of them negated, and their union."""
    fp, fn = s_m > tau and s_d < tau, s_m < tau and s_d > tau
    tp, tn = s_m < tau and s_d < tau, s_m > tau and s_d > tau
    return fn + tp - tn - fp


def looped_loss(features: Tensor, soft_mask: Tensor, inward: list[Point], outward: list[Point], threshold: float | str) -> Tensor:
    """Algorithm 1 for one image in float64, with the sign in place of its logarithm."""
    features, soft_mask = features.double(), soft_mask.double()

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return a @ b / (a.norm() * b.norm())

    s_d = [[cosine(features[:, *i].detach(), features[:, *o]) for o in outward] for i in inward]
    s_m = [[float(cosine(soft_mask[:, *i], soft_mask[:, *o])) for o in outward] for i in inward]
    count = len(inward)
    tau = sum(map(sum, s_m)) / count**2 if threshold == "mean" else float(threshold)
    loss = features.new_zeros(())
    for o in range(count):
        mean_m, mean_d = sum(s_m[i][o] for i in range(count)) / count, torch.stack([s_d[i][o] for i in range(count)]).mean()
        loss = loss + printed_sign(mean_m, float(mean_d.detach()), tau) * mean_d / count
    for i in range(count):
        mean_m, mean_d = sum(s_m[i]) / count, torch.stack(s_d[i]).mean()
        loss = loss + printed_sign(mean_m, float(mean_d.detach()), tau) * mean_d / count
    return loss


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


def batch(images: int = 3, size: tuple[int, int] = (10, 13)) -> tuple[Tensor, Tensor, Tensor]:
    """Features, logits and soft masks: random, with regions."""
    torch.manual_seed(5)
    coarse = 3 * torch.randn(images, 4, 4, 5)
    logits = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")
    soft = (torch.nn.functional.interpolate(coarse + torch.randn_like(coarse), size=size, mode="bilinear")).softmax(dim=1)
    return torch.randn(images, 6, *size, requires_grad=True), logits, soft


@pytest.mark.parametrize("threshold", ["mean", 0.5, 0.8])
@pytest.mark.parametrize("ignored", [False, True])
def test_value_and_gradient_are_those_of_the_loop(threshold: float, ignored: bool) -> None:
    features, logits, soft = batch()
    ignore = torch.rand(3, 10, 13) < 0.2 if ignored else None
    ours = beacon_loss(features, logits, soft, steps=2, samples=1000, threshold=threshold, ignore=ignore)
    expected = []
    for n in range(3):
        points = boundary_points(logits[n].softmax(dim=0), steps=2, ignore=None if ignore is None else ignore[n])
        expected.append(looped_loss(features[n], soft[n], *map(listed, points), threshold))
    torch.testing.assert_close(ours.double(), torch.stack(expected).mean(), rtol=1e-4, atol=1e-6)
    gradients = [torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in (ours, torch.stack(expected).mean())]
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_pairs_are_drawn_without_replacement_and_with_the_generator() -> None:
    features, logits, soft = batch(1)
    inward, outward = boundary_points(logits[0].softmax(dim=0), steps=2)
    drawn = torch.randperm(len(inward), generator=torch.Generator().manual_seed(3))[:5]
    expected = looped_loss(features[0], soft[0], listed(inward[drawn]), listed(outward[drawn]), "mean")
    losses = [beacon_loss(features, logits, soft, steps=2, samples=5, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    torch.testing.assert_close(losses[0].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_signs_do_not_depend_on_the_features() -> None:
    tau = 0.5
    for s_m in (0.2, 0.8):
        signs = {printed_sign(s_m, s_d, tau) for s_d in (0.1, 0.4, 0.6, 0.9)}
        assert signs == {1 if s_m < tau else -1}
    assert printed_sign(tau, 0.1, tau) == printed_sign(tau, 0.9, tau) == 0


def two_sides() -> tuple[Tensor, Tensor]:
    """Logits of an object on the left, and random features."""
    labels = torch.zeros(8, 8)
    labels[:, :4] = 1
    torch.manual_seed(1)
    return 9 * drawn(labels)[None], torch.randn(1, 5, 8, 8)


def test_sides_are_drawn_apart_where_the_mask_differs_and_together_where_it_does_not() -> None:
    logits, features = two_sides()
    points = boundary_points(logits[0].softmax(dim=0), steps=2)
    (y, x), (v, u) = (side.unbind(dim=1) for side in points)
    similarity = torch.nn.functional.cosine_similarity(features[0, :, y, x][:, :, None], features[0, :, v, u][:, None, :], dim=0).mean()
    differs, same = logits / 9, torch.full((1, 2, 8, 8), 0.5)
    for mask, sign in ((differs, 1), (same, -1)):
        torch.testing.assert_close(beacon_loss(features, logits, mask, steps=2, threshold=0.5), sign * 2 * similarity)
        # all means are equal: that of the image says nothing about any of them
        assert float(beacon_loss(features, logits, 0.37 * mask, steps=2)) == 0


def test_rounding_chooses_no_sign() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(60, 12)
    labels[:, :6] = 1
    features = torch.randn(1, 5, 60, 12)
    for _ in range(30):
        mask = torch.rand(1, 2, 1, 1).expand(1, 2, 60, 12)  # one vector everywhere: all means are equal but for their last digit
        assert float(beacon_loss(features, 9 * drawn(labels)[None], mask, steps=2, samples=101)) == 0


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(2)
    inward, outward = torch.tensor([[0, 0], [0, 1], [0, 2]]), torch.tensor([[3, 0], [3, 1], [3, 1]])
    features, soft = torch.randn(4, 4, 3, dtype=torch.float64), torch.rand(3, 4, 3, dtype=torch.float64)

    def loss(last_row: Tensor, threshold: float | str) -> Tensor:
        whole = torch.cat([features[:, :3], last_row[:, None]], dim=1)
        return point_contrast(whole, soft, inward, outward, threshold)  # type: ignore[arg-type]

    for threshold in ("mean", 0.7):
        assert torch.autograd.gradcheck(lambda row: loss(row, threshold), features[:, 3].clone().requires_grad_())  # noqa: B023


def test_only_features_of_outward_points_get_a_gradient() -> None:
    features, logits, soft = batch(1)
    logits.requires_grad_()
    soft.requires_grad_()
    beacon_loss(features, logits, soft, steps=2, samples=1000).backward()
    _, outward = boundary_points(logits[0].softmax(dim=0), steps=2)
    assert logits.grad is None and soft.grad is None and features.grad is not None
    assert set(listed(features.grad[0].abs().sum(dim=0).nonzero())) == set(listed(outward))


def test_images_without_points_are_left_out() -> None:
    features, logits, soft = batch(2)
    empty = logits.clone()
    empty[0] = 0
    torch.testing.assert_close(
        beacon_loss(features, empty, soft, steps=2, samples=999), beacon_loss(features[1:], logits[1:], soft[1:], steps=2, samples=999)
    )


def test_without_points_the_loss_and_its_gradient_are_zero() -> None:
    features, logits, soft = batch(2)
    for segmentation, ignore in ((0 * logits, None), (logits, torch.ones(2, 10, 13, dtype=torch.bool))):
        features.grad = None
        loss = beacon_loss(features, segmentation, soft, ignore=ignore, steps=2)
        loss.backward()
        assert loss.shape == () and loss.item() == 0 and features.grad is not None and not features.grad.any()


def test_vectors_of_zeros_have_no_direction() -> None:
    features, logits, soft = batch(1)
    _, outward = boundary_points(logits[0].softmax(dim=0), steps=2)
    y, x = outward[0].tolist()
    with torch.no_grad():
        features[0, :, y, x] = 0
    beacon_loss(features, logits, soft, steps=2, samples=999).backward()
    assert features.grad is not None and not features.grad[0, :, y, x].any()
    assert 0 < float(features.grad.abs().max()) < 1


def test_float32_under_autocast() -> None:
    features, logits, soft = batch(2)
    half = features.detach().bfloat16().requires_grad_()
    expected = beacon_loss(half.float(), logits, soft, steps=2, samples=999)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = beacon_loss(half, logits, soft, steps=2, samples=999)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    loss.backward()
    assert half.grad is not None and half.grad.any()
