"""Agreement of two sets of maps against a loop over cells."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from two_branches import normalised, resized

from wsss_core.losses.reconstruction import masked_l1, normalised_cams


def by_cells(maps: Tensor, others: Tensor, labels: Tensor) -> float:
    total, count = 0.0, 0
    for n in range(maps.shape[0]):
        for g in range(maps.shape[1]):
            other = resized(others[n, g].double(), *maps.shape[-2:])
            for y in range(maps.shape[2]):
                for x in range(maps.shape[3]):
                    total += abs(float(maps[n, g, y, x]) - float(other[y, x])) * float(labels[n, g])
                    count += 1
    return total / count


@pytest.mark.parametrize("others", [(3, 5), (4, 5), (3, 6), (4, 6), (2, 2), (1, 1)])
def test_it_is_the_mean_difference_of_the_classes_in_the_image(others: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps, other, labels = torch.randn(2, 4, 3, 5), torch.randn(2, 4, *others), torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    before = maps.clone(), other.clone(), labels.clone()
    assert float(masked_l1(maps, other, labels)) == pytest.approx(by_cells(maps, other, labels), rel=1e-5)
    assert all(torch.equal(*pair) for pair in zip((maps, other, labels), before, strict=True))


@pytest.mark.parametrize("others", [(3, 5), (4, 6)])
def test_of_cams_it_is_that_of_what_is_seen(others: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps, other, labels = 3 * torch.randn(2, 4, 3, 5), 3 * torch.randn(2, 4, *others), torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]])
    on_grid = torch.stack([torch.stack([resized(plane, 3, 5) for plane in image]) for image in other])
    seen = [torch.stack([torch.stack([normalised(plane) for plane in image]) for image in each]) for each in (maps, on_grid)]
    assert float(masked_l1(maps, other, labels, "cams")) == pytest.approx(by_cells(seen[0], seen[1], labels), rel=1e-5)
    assert float(masked_l1(maps, other, labels)) == float(masked_l1(maps, other, labels, "logits"))


def test_cams_are_compared_whatever_their_scale_and_what_lies_below_0() -> None:
    torch.manual_seed(0)
    maps, others, labels = (1 + torch.rand(2, 3, 4, 4) for _ in range(2)), torch.randn(2, 3, 4, 4), torch.ones(2, 3)
    one, other = maps
    loss = masked_l1(one, 2 * other, labels, "cams")
    assert float(loss) > 0
    torch.testing.assert_close(masked_l1(7 * one, other, labels, "cams"), loss)
    assert float(masked_l1(one, one, labels, "cams")) == pytest.approx(float(masked_l1(one, 3 * one, labels, "cams")), abs=1e-6) == 0
    assert float(masked_l1(-others.abs(), -9 * others.abs(), labels, "cams")) == 0


def test_cams_are_divided_by_their_maximum_or_by_1() -> None:
    maps = torch.tensor([[[[-1.0, 2, 4, 0]], [[0.5, 0.25, -2, 0]], [[-3, -2, -1, -4]]]], requires_grad=True)
    expected = torch.tensor([[[[0, 0.5, 1, 0]], [[0.5, 0.25, 0, 0]], [[0, 0, 0, 0]]]])
    assert torch.equal(normalised_cams(maps), expected)
    assert normalised_cams(maps.half()).dtype == torch.float32
    for size in (1e-9, 1e-3, 1.0):
        low = (size * torch.rand(1, 1, 4, 4)).requires_grad_()
        (gradient,) = torch.autograd.grad(normalised_cams(low)[..., 0, 0].sum(), low)
        assert gradient.abs().max() <= 1  # a map that shows next to nothing is not blown up


def test_absent_classes_count_as_agreement() -> None:
    maps, others = torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 2, 2), -1.0)
    assert float(masked_l1(maps, others, torch.tensor([[0.0, 1, 0, 0]]))) == 1
    assert float(masked_l1(maps, others, torch.ones(1, 4))) == 4
    assert float(masked_l1(others, maps, torch.ones(1, 4))) == 4


@pytest.mark.parametrize("others", [(2, 3), (3, 4)])
def test_gradients_go_to_both_sides(others: tuple[int, int]) -> None:
    torch.manual_seed(0)
    above = (2 + torch.rand(2, 2, 2, 3, dtype=torch.float64)).requires_grad_()
    below = torch.rand(2, 2, *others, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1.0, 0], [1, 1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *maps: masked_l1(*maps, labels), (above, below))
    assert torch.autograd.gradcheck(lambda *maps: masked_l1(*maps, labels), (-above, below))
    gradients = torch.autograd.grad(masked_l1(above, below, labels), (above, below))
    shown = labels.bool()
    assert (gradients[0][shown] > 0).all() and (gradients[1][shown] < 0).all()
    assert not gradients[0][~shown].any() and not gradients[1][~shown].any()


def test_maps_that_agree_or_show_nothing_give_no_gradient() -> None:
    maps, others = torch.zeros(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 3, 4, 4, requires_grad=True)
    nothing = masked_l1(maps + 1, others, torch.zeros(2, 3))
    for loss in (masked_l1(maps, others, torch.ones(2, 3)), nothing):
        found = torch.autograd.grad(loss, (maps, others))
        assert loss.item() == 0 and not any(each.any() for each in found)
