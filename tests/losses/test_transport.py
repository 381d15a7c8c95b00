"""Sinkhorn distances: against POT, golden vectors and what is known in closed form, with gradients and masses of 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from wsss_core.losses.transport import sinkhorn

GOLDEN = Path(__file__).parents[3] / "shared/golden/sinkhorn_reg0.1.npz"


def made(count: int = 4, n: int = 5, m: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(count, n, m, generator=generator, dtype=torch.float64)
    a, b = (torch.rand(count, size, generator=generator, dtype=torch.float64) + 0.05 for size in (n, m))
    return cost, a / a.sum(dim=1, keepdim=True), b / b.sum(dim=1, keepdim=True)


@pytest.mark.parametrize("reg", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("size", [(5, 7), (9, 4), (1, 6), (6, 1)])
def test_every_problem_of_a_batch_is_solved_as_by_pot(size: tuple[int, int], reg: float) -> None:
    cost, a, b = made(3, *size)
    distance, plan = sinkhorn(cost, a, b, reg=reg, iterations=3000)
    for i in range(len(cost)):
        expected = ot.sinkhorn(a[i].numpy(), b[i].numpy(), cost[i].numpy(), reg, numItermax=20000, stopThr=1e-13)
        np.testing.assert_allclose(plan[i].numpy(), expected, rtol=0, atol=1e-9)
        assert float(distance[i]) == pytest.approx(float((expected * cost[i].numpy()).sum()), abs=1e-9)


@pytest.mark.parametrize("iterations", [1, 2, 10])
def test_few_iterations_are_the_scalings_of_the_kernel(iterations: int) -> None:
    cost, a, b = made()
    _, plan = sinkhorn(cost, a, b, reg=0.2, iterations=iterations)
    for i in range(len(cost)):
        kernel = torch.exp(-cost[i] / 0.2)
        rows = torch.ones_like(a[i])
        for _ in range(iterations):
            columns = b[i] / (kernel.T @ rows)
            rows = a[i] / (kernel @ columns)
        torch.testing.assert_close(plan[i], rows[:, None] * kernel * columns)
    torch.testing.assert_close(plan.sum(dim=2), a)


def test_problems_of_a_large_batch_are_solved_as_alone() -> None:
    cost, a, b = (value.requires_grad_() for value in made(700, 15, 20))  # more than one block, and a part of one
    distance, plan = sinkhorn(cost, a, b, reg=0.1, iterations=3)
    (gradient,) = torch.autograd.grad(distance.sum(), cost)
    for i in (0, 433, 699):
        own = cost[i : i + 1].detach().requires_grad_()
        alone, its_plan = sinkhorn(own, a[i : i + 1], b[i : i + 1], reg=0.1, iterations=3)
        torch.testing.assert_close(distance[i], alone[0])
        torch.testing.assert_close(plan[i], its_plan[0])
        torch.testing.assert_close(gradient[i], torch.autograd.grad(alone.sum(), own)[0][0])


def test_with_little_entropy_it_is_the_earth_movers_distance() -> None:
    cost, a, b = made()
    distance, plan = sinkhorn(cost, a, b, reg=1e-3, iterations=20000)
    for i in range(len(cost)):
        assert float(distance[i]) == pytest.approx(ot.emd2(a[i].numpy(), b[i].numpy(), cost[i].numpy()), abs=2e-3)
    torch.testing.assert_close(plan.sum(dim=1), b, rtol=0, atol=1e-6)


def test_masses_of_0_are_as_if_they_were_not_there() -> None:
    cost, a, b = made(2, 4, 5)
    expected = sinkhorn(cost, a, b, reg=0.1, iterations=50)
    wider, more_a, more_b = torch.rand(2, 6, 8, dtype=torch.float64), a.new_zeros(2, 6), b.new_zeros(2, 8)
    wider[:, 1:5, 2:7], more_a[:, 1:5], more_b[:, 2:7] = cost, a, b
    inputs = [value.requires_grad_() for value in (wider, more_a, more_b)]
    distance, plan = sinkhorn(*inputs, reg=0.1, iterations=50)
    torch.testing.assert_close(distance, expected[0])
    torch.testing.assert_close(plan[:, 1:5, 2:7], expected[1])
    torch.testing.assert_close(plan.sum(), torch.tensor(2.0, dtype=torch.float64))
    gradients = torch.autograd.grad(distance.sum(), inputs)
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)
    assert not gradients[1][:, [0, 5]].any() and not gradients[2][:, [0, 1, 7]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_problem_without_any_mass_moves_nothing(dtype: torch.dtype) -> None:
    cost = torch.rand(1, 3, 4, dtype=dtype, requires_grad=True)
    distance, plan = sinkhorn(cost, torch.zeros(1, 3, dtype=dtype), torch.zeros(1, 4, dtype=dtype), reg=0.1, iterations=9)
    (gradient,) = torch.autograd.grad(distance.sum(), cost)
    assert not plan.any() and not distance.any() and not gradient.any()


def test_gradients() -> None:
    cost, a, b = (value.requires_grad_() for value in made(2, 3, 4))
    assert torch.autograd.gradcheck(lambda *values: sinkhorn(*values, reg=0.3, iterations=6), (cost, a, b))


def test_at_the_optimum_the_plan_is_the_gradient_of_the_regularised_cost() -> None:
    cost, a, b = made()
    cost.requires_grad_()
    distance, plan = sinkhorn(cost, a, b, reg=0.2, iterations=2000)
    (gradient,) = torch.autograd.grad((distance + 0.2 * torch.special.xlogy(plan, plan).sum(dim=(1, 2))).sum(), cost)
    torch.testing.assert_close(gradient, plan, rtol=0, atol=1e-9)


def test_costs_far_above_the_entropys_weight_do_not_underflow() -> None:
    cost, a, b = (value.float() for value in made())
    distance, plan = sinkhorn(100 + 1000 * cost, a, b, reg=0.5, iterations=200)
    assert plan.isfinite().all() and distance.isfinite().all()
    torch.testing.assert_close(plan.sum(dim=2), a, rtol=1e-3, atol=1e-4)


def test_lower_precision_is_computed_in_float32() -> None:
    cost, a, b = made()
    expected, _ = sinkhorn(cost, a, b, reg=0.1, iterations=50)
    distance, plan = sinkhorn(*(value.half() for value in (cost, a, b)), reg=0.1, iterations=50)
    assert plan.dtype == distance.dtype == torch.float32
    torch.testing.assert_close(distance.double(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize(("reg", "iterations"), [(0.0, 10), (-1.0, 10), (0.1, 0)])
def test_wrong_arguments(reg: float, iterations: int) -> None:
    with pytest.raises(ValueError, match="expected reg > 0"):
        sinkhorn(*made(), reg=reg, iterations=iterations)


@pytest.mark.skipif(not GOLDEN.is_file(), reason="golden vectors not here")
def test_golden() -> None:
    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN, allow_pickle=False).items()}
    distance, plan = sinkhorn(golden["cost"][None], golden["a"][None], golden["b"][None], reg=0.1, iterations=5000)
    torch.testing.assert_close(distance[0], golden["distance"], rtol=0, atol=1e-9)
    torch.testing.assert_close(plan[0], golden["plan"], rtol=0, atol=1e-9)
