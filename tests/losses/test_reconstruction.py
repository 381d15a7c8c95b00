"""Agreement of two sets of maps against a loop over cells."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from two_branches import resized

from wsss_core.losses.reconstruction import masked_l1


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
