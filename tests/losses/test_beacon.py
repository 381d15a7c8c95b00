"""BEACON against Algorithms 1 and 3 in loops over enlarged features, and sampled pixels against enlarged maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate, one_hot

from wsss_core.losses.beacon import at_pixels, beacon_loss, boundary_points, point_pairs

SIZE = (12, 16)
"""Of the images, in pixels."""


def drawn(labels: Tensor, classes: int = 2) -> Tensor:
    return one_hot(labels.long(), classes).permute(2, 0, 1).float()


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def printed_sign(s_m: float, s_d: float, tau: float) -> int:
    """Algorithm 3 for one point: the binary cases, two of them negated, and their union."""
    fp, fn = s_m > tau and s_d < tau, s_m < tau and s_d > tau
    tp, tn = s_m < tau and s_d < tau, s_m > tau and s_d > tau
    return fn + tp - tn - fp


def looped_loss(features: Tensor, soft_mask: Tensor, inward: Tensor, outward: Tensor, threshold: float | str) -> Tensor:
    """Algorithm 1 for one image of `SIZE` in float64, on enlarged features and masks, with the sign in place of its logarithm."""
    features, soft_mask = enlarged(features.double(), SIZE), enlarged(soft_mask.double(), SIZE)

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return a @ b / (a.norm() * b.norm())

    points = list(zip(inward.tolist(), outward.tolist(), strict=True))
    s_d = [[cosine(features[:, *i].detach(), features[:, *o]) for _, o in points] for i, _ in points]
    s_m = [[float(cosine(soft_mask[:, *i], soft_mask[:, *o])) for _, o in points] for i, _ in points]
    count = len(points)
    tau = sum(map(sum, s_m)) / count**2 if threshold == "mean" else float(threshold)
    loss = features.new_zeros(())
    for o in range(count):
        mean_m, mean_d = sum(s_m[i][o] for i in range(count)) / count, torch.stack([s_d[i][o] for i in range(count)]).mean()
        loss = loss + printed_sign(mean_m, float(mean_d.detach()), tau) * mean_d / count
    for i in range(count):
        mean_m, mean_d = sum(s_m[i]) / count, torch.stack(s_d[i]).mean()
        loss = loss + printed_sign(mean_m, float(mean_d.detach()), tau) * mean_d / count
    return loss


def batch(images: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Features at stride 4, logits at `SIZE` and soft masks at stride 2: random, with regions."""
    torch.manual_seed(5)
    coarse = 3 * torch.randn(images, 4, 4, 5)
    logits = interpolate(coarse, size=SIZE, mode="bicubic")
    soft = interpolate(coarse + torch.randn_like(coarse), size=(6, 8), mode="bilinear").softmax(dim=1)
    return torch.randn(images, 6, 3, 4, requires_grad=True), logits, soft


@pytest.mark.parametrize("cells", [(3, 4), (4, 5), (1, 1), (12, 16), (14, 20)])
def test_pixels_are_those_of_the_enlarged_maps_up_to_the_border(cells: tuple[int, int]) -> None:
    torch.manual_seed(4)
    maps = torch.randn(3, *cells, dtype=torch.float64, requires_grad=True)
    pixels = torch.cartesian_prod(*map(torch.arange, SIZE))
    expected = enlarged(maps, SIZE).flatten(1).T
    torch.testing.assert_close(at_pixels(maps, pixels, SIZE), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(at_pixels(maps.float(), pixels, SIZE), expected.float(), rtol=0, atol=1e-5)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((weights * values).sum(), maps)[0] for values in (at_pixels(maps, pixels, SIZE), expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)
    half = maps.detach().bfloat16()
    torch.testing.assert_close(at_pixels(half, pixels[5:9], SIZE), enlarged(half.float(), SIZE).flatten(1).T[5:9], rtol=0, atol=1e-5)


@pytest.mark.parametrize("threshold", ["mean", 0.5, 0.8])
@pytest.mark.parametrize("ignored", [False, True])
def test_value_and_gradient_are_those_of_the_loop(threshold: float, ignored: bool) -> None:
    features, logits, soft = batch()
    ignore = torch.rand(3, *SIZE) < 0.2 if ignored else None
    ours = beacon_loss(features, logits, soft, steps=2, samples=1000, threshold=threshold, ignore=ignore)
    expected = []
    for n in range(3):
        points = boundary_points(logits[n].softmax(dim=0), steps=2, ignore=None if ignore is None else ignore[n])
        expected.append(looped_loss(features[n], soft[n], *points, threshold))
    torch.testing.assert_close(ours.double(), torch.stack(expected).mean(), rtol=1e-4, atol=1e-6)
    gradients = [torch.autograd.grad(loss, features, retain_graph=True)[0] for loss in (ours, torch.stack(expected).mean())]
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def classes_at_points(own: list[int], others: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """A sure soft mask of one row of pixels, and the points in it: inward ones of classes `own`, outward ones of `others`."""
    mask = drawn(torch.tensor([[*own, *others]]))
    columns = torch.arange(mask.shape[2])
    points = torch.stack([torch.zeros_like(columns), columns], dim=1)
    return mask, points[: len(own)], points[len(own) :]


def test_a_sign_for_each_pair_follows_the_mask_wherever_most_points_lie() -> None:
    """Points mostly in background: by the signs of points two of an object are pushed apart, and object and background are not."""
    own, others = [1, 0, 0, 0], [0, 0, 1, 0]
    mask, *points = classes_at_points(own, others)
    features = torch.randn(3, *mask.shape[1:], requires_grad=True)
    alike = torch.tensor(own)[:, None] == torch.tensor(others)
    for threshold in ("mean", 0.5):
        s_d, weight = point_pairs(features, mask, *points, mask.shape[1:], threshold, "pair")
        assert torch.equal(weight, torch.where(alike, -2.0, 2.0))
        torch.testing.assert_close((weight * s_d).mean(), 2 * torch.where(alike, -s_d, s_d).mean())
    _, weight = point_pairs(features, mask, *points, mask.shape[1:], 0.5, "point")
    assert weight[0, 2] == 2 and (weight[0, [0, 1, 3]] == 0).all()


def test_both_signs_weigh_the_same_where_points_agree() -> None:
    mask, *points = classes_at_points([1, 1, 1], [0, 0, 0])
    features = torch.randn(3, *mask.shape[1:])
    pairs = [point_pairs(features, mask, *points, mask.shape[1:], 0.5, sign) for sign in ("point", "pair")]  # type: ignore[arg-type]
    torch.testing.assert_close(*((weight * similarity).mean() for similarity, weight in pairs))


def test_the_share_of_pairs_of_one_class_among_those_that_are_pushed_is_told() -> None:
    features, logits, _ = batch()
    soft = torch.rand(3, 4, 6, 8, generator=torch.Generator().manual_seed(0))  # strongest channels are hardly stronger than others
    points = [boundary_points(each.softmax(dim=0), steps=2) for each in logits]
    for sign in ("point", "pair"):
        pushed = wrong = 0
        for n, (inward, outward) in enumerate(points):
            _, weight = point_pairs(features[n], soft[n], inward, outward, SIZE, "mean", sign)
            strongest = enlarged(soft[n], SIZE).argmax(dim=0)
            for i, o in (weight > 0).nonzero().tolist():
                pushed += 1
                wrong += int(strongest[*inward[i]] == strongest[*outward[o]])
        told: list[Tensor] = []
        beacon_loss(features, logits, soft, steps=2, samples=1000, sign=sign, observe=told.append)
        assert [float(each) for each in told] == [pytest.approx(wrong / pushed)] and 0 < wrong < pushed
    told = []
    beacon_loss(features, 0 * logits, soft, observe=told.append)
    assert [float(each) for each in told] == [0]


def test_what_is_told_is_counted_exactly_whatever_the_precision_of_the_features() -> None:
    """Sixteen images of twenty thousand pairs in all: more than half precision has digits for."""
    features, logits, soft = (each.repeat(16, 1, 1, 1) for each in batch(1))
    told: list[Tensor] = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        draw = torch.Generator().manual_seed(0)
        beacon_loss(features.to(dtype), logits, soft, steps=2, samples=1000, sign="pair", generator=draw, observe=told.append)
    assert all(each.dtype == torch.float32 for each in told) and told[0] == told[1] == told[2]


def test_pairs_are_drawn_without_replacement_and_with_the_generator() -> None:
    features, logits, soft = batch(1)
    inward, outward = boundary_points(logits[0].softmax(dim=0), steps=2)
    drawn = torch.randperm(len(inward), generator=torch.Generator().manual_seed(3))[:5]
    expected = looped_loss(features[0], soft[0], inward[drawn], outward[drawn], "mean")
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
    """Logits of an object on the left of an image of 16 x 16 pixels, and random features of stride 4."""
    labels = torch.zeros(16, 16)
    labels[:, :8] = 1
    torch.manual_seed(1)
    return 9 * drawn(labels)[None], torch.randn(1, 5, 4, 4, requires_grad=True)


def test_sides_are_drawn_apart_where_the_mask_differs_and_together_where_it_does_not() -> None:
    logits, features = two_sides()
    inward, outward = (
        enlarged(features[0], (16, 16))[:, side[:, 0], side[:, 1]] for side in boundary_points(logits[0].softmax(dim=0), steps=3)
    )
    similarity = cosine_similarity(inward[:, :, None], outward[:, None, :], dim=0).mean()
    differs, same = logits / 9, torch.full((1, 2, 4, 4), 0.5)
    for mask, sign in ((differs, 1), (same, -1)):
        torch.testing.assert_close(beacon_loss(features, logits, mask, steps=3, threshold=0.5), sign * 2 * similarity)
        # all means are equal: that of the image says nothing about any of them
        assert beacon_loss(features, logits, 0.37 * mask, steps=3).item() == 0


def test_a_cell_of_the_mask_that_knows_nothing_changes_nothing_beside_it() -> None:
    logits, features = two_sides()  # outward points are at columns 11 and 12, between the third cell and the fourth
    sure = torch.zeros(1, 4, 4, 4)
    sure[:, 1] = 1
    losses = {}
    for value in (1.0, 0.0, None):
        mask = sure.clone()
        mask[..., 2] = 1 if value is None else value * sure[..., 2]
        losses[value] = beacon_loss(features, logits, mask, steps=4, threshold=0.95).item()
    assert losses[0.0] == pytest.approx(losses[1.0], rel=1e-5) and losses[None] == pytest.approx(-losses[1.0], rel=1e-5) != 0


def test_rounding_chooses_no_sign() -> None:
    torch.manual_seed(0)
    labels = torch.zeros(60, 12)
    labels[:, :6] = 1
    features = torch.randn(1, 5, 15, 3)
    for _ in range(30):
        mask = torch.rand(1, 2, 1, 1).expand(1, 2, 15, 3)  # one vector everywhere: all means are equal but for their last digit
        assert float(beacon_loss(features, 9 * drawn(labels)[None], mask, steps=2, samples=101)) == 0


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(2)
    inward, outward = torch.tensor([[0, 0], [4, 5], [9, 11]]), torch.tensor([[12, 0], [13, 7], [13, 7]])
    features, soft = torch.randn(4, 4, 3, dtype=torch.float64), torch.rand(3, 4, 3, dtype=torch.float64)

    def loss(last_row: Tensor, threshold: float | str) -> Tensor:
        whole = torch.cat([features[:, :3], last_row[:, None]], dim=1)  # of which the inward points see nothing
        similarity, weight = point_pairs(whole, soft, inward, outward, (16, 12), threshold, "point")  # type: ignore[arg-type]
        return (weight * similarity).mean()

    for threshold in ("mean", 0.7):
        assert torch.autograd.gradcheck(lambda row: loss(row, threshold), features[:, 3].clone().requires_grad_())  # noqa: B023


def test_only_features_around_outward_points_get_a_gradient() -> None:
    logits, features = two_sides()
    soft = torch.rand(1, 2, 4, 4, requires_grad=True)
    logits.requires_grad_()
    beacon_loss(features, logits, soft, steps=4, samples=1000).backward()
    assert logits.grad is None and soft.grad is None and features.grad is not None
    columns = features.grad.abs().sum(dim=(0, 1, 2))  # outward points at 11 and 12, inward ones at 3 and 4
    assert (columns[2:] > 1e-4).all() and (columns[:2] < 1e-9).all()


def test_images_without_points_are_left_out() -> None:
    features, logits, soft = batch(2)
    empty = logits.clone()
    empty[0] = 0
    torch.testing.assert_close(
        beacon_loss(features, empty, soft, steps=2, samples=999), beacon_loss(features[1:], logits[1:], soft[1:], steps=2, samples=999)
    )


def test_without_points_the_loss_and_its_gradient_are_zero() -> None:
    features, logits, soft = batch(2)
    for segmentation, ignore in ((0 * logits, None), (logits, torch.ones(2, *SIZE, dtype=torch.bool))):
        features.grad = None
        loss = beacon_loss(features, segmentation, soft, ignore=ignore, steps=2)
        loss.backward()
        assert loss.shape == () and loss.item() == 0 and features.grad is not None and not features.grad.any()


def test_vectors_of_zeros_have_no_direction() -> None:
    features, logits, soft = batch(1)
    _, outward = boundary_points(logits[0].softmax(dim=0), steps=2)
    with torch.no_grad():
        features[..., :2] = 0
    assert (outward[:, 1] < 6).any()  # between the first two columns of cells
    beacon_loss(features, logits, soft, steps=2, samples=999).backward()
    assert features.grad is not None and not features.grad[..., 0].any()
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
