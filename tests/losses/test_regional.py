"""Pairwise regional contrast: against a loop over images and pairs of patches, its windows, and maps of all sizes."""

from __future__ import annotations

import ot
import pytest
import torch
from torch import Tensor

from wsss_core.losses.regional import Windows, dynamic_windows, regional_contrast, static_windows, with_background
from wsss_core.losses.transport import sinkhorn


def maps_of(size: tuple[int, int], classes: int = 3, seed: int = 0, images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(images, classes, *size, generator=generator, dtype=torch.float64)).requires_grad_()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cells_in(image: Tensor, windows: Windows) -> list[Tensor]:
    """The patches of [C, h, w], each as vectors [cells, C]."""
    _, height, width = image.shape
    return [
        torch.stack([image[:, y + dy, x + dx] for dy in range(windows.height) for dx in range(windows.width)])
        for y in range(0, height - windows.height + 1, windows.stride_y)
        for x in range(0, width - windows.width + 1, windows.stride_x)
    ]


def by_pairs(attended: Tensor, maps: Tensor, windows: Windows, reg: float, iterations: int) -> Tensor:
    terms = []
    static = Windows(maps.shape[2] // 2, maps.shape[3] // 2, -(-maps.shape[2] // 2), -(-maps.shape[3] // 2))
    for own, other in zip(with_background(attended), with_background(maps.detach()), strict=True):
        pairs = []
        for p in cells_in(own, windows):
            for q in cells_in(other, static):
                cost = 1 - torch.stack([torch.stack([u @ v / (u.norm() * v.norm()) for v in q]) for u in p])
                masses = [cost.new_full((1, len(cells)), 1 / len(cells)) for cells in (p, q)]
                _, plan = sinkhorn(cost.detach()[None], *masses, reg=reg, iterations=iterations)
                pairs.append((plan[0] * cost).sum())
        assert len(pairs) % 4 == 0
        terms.append(min(pairs))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize(("size", "other"), [((4, 4), (4, 4)), ((7, 5), (7, 5)), ((6, 9), (5, 4))])
def test_value_and_gradient_are_those_of_the_pair_loop(size: tuple[int, int], other: tuple[int, int], classes: int) -> None:
    attended, maps = maps_of(size, classes), maps_of(other, classes, seed=1)
    for seed in range(2):
        ours = regional_contrast(attended, maps, reg=0.2, iterations=5, generator=seeded(seed))
        expected = by_pairs(attended, maps, dynamic_windows(size, seeded(seed)), 0.2, 5)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(*(torch.autograd.grad(loss, attended)[0] for loss in (ours, expected)))


def test_with_little_entropy_it_is_the_lowest_earth_movers_distance() -> None:
    attended, maps = maps_of((6, 6), images=1).detach(), maps_of((6, 6), seed=1, images=1).detach()
    value = regional_contrast(attended, maps, reg=2e-3, iterations=3000, generator=seeded(3))
    distances = []
    windows = dynamic_windows((6, 6), seeded(3))
    for p in cells_in(torch.nn.functional.normalize(with_background(attended)[0], dim=0), windows):
        for q in cells_in(torch.nn.functional.normalize(with_background(maps)[0], dim=0), Windows(3, 3, 3, 3)):
            distances.append(ot.emd2([], [], (1 - p @ q.T).numpy()))
    assert float(value) == pytest.approx(min(distances), abs=2e-3)
    assert max(distances) > 2 * min(distances), "otherwise the choice would not show"


def test_gradients_of_a_converged_plan_are_near_the_full_ones() -> None:
    """The plan's own gradient is left out; with little entropy it is small (envelope theorem)."""
    attended, maps = maps_of((4, 4), images=1), maps_of((4, 4), seed=1, images=1)

    def value(of: Tensor) -> Tensor:
        return regional_contrast(of, maps, reg=5e-3, iterations=600, generator=seeded(0))

    (gradient,) = torch.autograd.grad(value(attended), attended)
    for seed in range(2):
        direction = maps_of((4, 4), images=1, seed=10 + seed).detach()
        with torch.no_grad():
            slope = (value(attended + 1e-4 * direction) - value(attended - 1e-4 * direction)) / 2e-4
        assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=0.05)


def test_static_side_has_no_gradient() -> None:
    attended, maps = maps_of((8, 8)), maps_of((8, 8), seed=1)
    regional_contrast(attended, maps, generator=seeded(0)).backward()
    assert maps.grad is None and attended.grad is not None and attended.grad.any()


def test_training_on_it_draws_maps_together() -> None:
    attended, maps = maps_of((8, 8)), maps_of((8, 8), seed=1)
    generator = seeded(0)
    before = float(regional_contrast(attended, maps, generator=seeded(9)))
    optimiser = torch.optim.Adam([attended], lr=0.1)
    for _ in range(40):
        optimiser.zero_grad()
        regional_contrast(attended, maps, generator=generator).backward()
        optimiser.step()
    assert float(regional_contrast(attended, maps, generator=seeded(9))) < 0.8 * before


def test_equal_flat_maps_cost_nothing() -> None:
    flat = maps_of((1, 1)).expand(2, 3, 9, 10)
    assert float(regional_contrast(flat, flat)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (4, 4), (4, 17), (13, 14), (15, 15)])
def test_all_sizes_from_2_by_2_work(size: tuple[int, int]) -> None:
    attended, maps = maps_of(size).detach().float().requires_grad_(), maps_of(size, seed=1).float()
    for seed in range(4):
        loss = regional_contrast(attended, maps, generator=seeded(seed))
        (gradient,) = torch.autograd.grad(loss, attended)
        assert 0 <= float(loss) <= 1 and gradient.isfinite().all() and gradient.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("size", [(1, 4), (4, 1), (1, 1)])
def test_smaller_maps_have_no_patches(size: tuple[int, int]) -> None:
    for attended, maps in ((size, (4, 4)), ((4, 4), size)):
        with pytest.raises(ValueError, match=f"at least 2x2 cells, got {size[0]}x{size[1]}"):
            regional_contrast(maps_of(attended), maps_of(maps))


@pytest.mark.parametrize("side", [2, 3, 4, 5, 7, 14, 28])
def test_windows_are_within_their_bounds_and_vary(side: int) -> None:
    drawn = [dynamic_windows((side, 2 * side), seeded(seed)) for seed in range(200)]
    for windows in drawn:
        for length, stride, whole in ((windows.height, windows.stride_y, side), (windows.width, windows.stride_x, 2 * side)):
            assert whole <= 3 * length and 2 * length <= whole
            assert length <= 2 * stride and stride <= length
    if side == 14:
        assert {windows.height for windows in drawn} == {5, 6, 7} and {windows.width for windows in drawn} == {10, 11, 12, 13, 14}
        assert {windows.stride_y for windows in drawn} == {3, 4, 5, 6, 7}


def test_windows_come_from_the_generator() -> None:
    assert dynamic_windows((14, 14), seeded(5)) == dynamic_windows((14, 14), seeded(5))
    attended, maps = maps_of((14, 14)), maps_of((14, 14), seed=1)
    values = [float(regional_contrast(attended, maps, generator=seeded(seed))) for seed in (5, 5, 6)]
    assert values[0] == values[1] != values[2]
    torch.manual_seed(7)
    first = dynamic_windows((28, 28))
    torch.manual_seed(7)
    assert dynamic_windows((28, 28)) == first


@pytest.mark.parametrize(("size", "expected"), [((4, 6), (2, 3, 2, 3)), ((5, 7), (2, 3, 3, 4)), ((2, 3), (1, 1, 1, 2))])
def test_static_patches_are_four_and_do_not_overlap(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    windows = static_windows(size)
    assert windows == expected
    assert len(cells_in(torch.zeros(1, *size), windows)) == 4
    assert windows.stride_y + windows.height == size[0] and windows.stride_x + windows.width == size[1]


def test_background_comes_first_and_is_what_no_class_has() -> None:
    maps = maps_of((2, 3), classes=4)
    result = with_background(maps)
    assert result.shape == (2, 5, 2, 3)
    foreground = maps.exp() / maps.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(result[:, 1:], foreground)
    torch.testing.assert_close(result[:, 0], 1 - foreground.max(dim=1).values)


def test_a_single_class_still_has_a_background() -> None:
    maps = maps_of((2, 3), classes=1)
    torch.testing.assert_close(with_background(maps), torch.cat([-maps, maps], dim=1).sigmoid())


def test_half_precision_and_autocast_compute_in_float32() -> None:
    attended, maps = maps_of((8, 8)).detach(), maps_of((8, 8), seed=1).detach()
    exact = float(regional_contrast(attended, maps, generator=seeded(0)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = regional_contrast(attended.float(), maps.float(), generator=seeded(0))
        low = regional_contrast(attended.half(), maps.half(), generator=seeded(0))
    assert value.dtype == low.dtype == torch.float32
    assert float(value) == pytest.approx(exact, rel=1e-4) and float(low) == pytest.approx(exact, rel=2e-2)
