"""AffinityNet's affinities and loss against loops, their gradients against finite differences and plain autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsss_core.losses import affinity as module
from wsss_core.losses.affinity import affinity_loss, affinity_terms, pair_affinity
from wsss_core.nn.neighbours import offset_list, pair_labels

SIZES = [(5, 7), (1, 9), (9, 1), (2, 3), (1, 1)]


def make_features(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


def loops(features: Tensor, radius: int) -> Tensor:
    """Affinities pair by pair, with autograd."""
    _, _, height, width = features.shape
    zero = features.new_zeros(len(features))
    affinity = []
    for dy, dx in offset_list(radius):
        for y in range(height):
            for x in range(width):
                inside = y + dy < height and 0 <= x + dx < width
                distance = (features[:, :, y, x] - features[:, :, y + dy, x + dx]).abs().mean(1) if inside else None
                affinity.append(zero if distance is None else torch.exp(-distance))
    return torch.stack(affinity, dim=1).view(len(features), -1, height, width)


def make_pairs(*shape: int) -> dict[str, Tensor]:
    labels = torch.tensor([0, 0, 1, 2, 255], dtype=torch.uint8)[torch.randint(5, shape, generator=torch.Generator().manual_seed(1))]
    return pair_labels(labels, 3)


def mean_penalties(affinity: Tensor, pairs: dict[str, Tensor]) -> dict[str, float]:
    """The loss terms pair by pair."""
    terms = {}
    for kind, mask in pairs.items():
        chosen = affinity[mask].tolist()
        penalties = [-math.log(1 + 1e-5 - a if kind == "neg" else a + 1e-5) for a in chosen]
        terms[kind] = sum(penalties) / (len(chosen) + 1e-5)
    return terms


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block", [1, 10**6])
def test_affinity_agrees_with_loops(size: tuple[int, int], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    features = make_features(3, 4, *size)
    torch.testing.assert_close(pair_affinity(features, 4), loops(features, 4))


@pytest.mark.parametrize("block", [1, 10**6])
def test_gradient_agrees_with_autograd_through_loops(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    features = make_features(3, 4, 5, 6)
    # Equal channels and equal cells, where the derivative of the absolute value is 0.
    features[:, 0] = 1
    features[:, :, 2, 1:4] = 0.5
    upstream = make_features(3, len(offset_list(3)), 5, 6)
    actual, expected = (
        torch.autograd.grad(function(x, 3), x, upstream)[0]
        for function in (pair_affinity, loops)
        for x in [features.clone().requires_grad_()]
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("size", SIZES)
def test_gradient_agrees_with_finite_differences(size: tuple[int, int]) -> None:
    features = make_features(2, 3, *size).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pair_affinity(x, 3), features)


def test_layout_and_precision_of_features() -> None:
    features = make_features(2, 8, 5, 6, dtype=torch.float32)
    expected = pair_affinity(features, 3)
    torch.testing.assert_close(pair_affinity(features.contiguous(memory_format=torch.channels_last), 3), expected, rtol=0, atol=0)
    half = features.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = pair_affinity(half, 3)
        actual.sum().backward()
    assert actual.dtype == torch.float32 and half.grad is not None and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(actual.detach(), pair_affinity(half.detach().float(), 3), rtol=0, atol=0)


def test_an_empty_batch_has_empty_affinities() -> None:
    features = torch.zeros(0, 3, 4, 5, requires_grad=True)
    affinity = pair_affinity(features, 3)
    affinity.sum().backward()
    assert affinity.shape == (0, len(offset_list(3)), 4, 5) and features.grad is not None


@pytest.mark.parametrize("size", [(2, 5, 7), (1, 1, 9), (1, 2, 2)])
def test_loss_agrees_with_loops(size: tuple[int, int, int]) -> None:
    pairs = make_pairs(*size)
    affinity = torch.rand(pairs["bg"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = mean_penalties(affinity, pairs)
    terms = affinity_terms(affinity, pairs)
    assert {kind: term.item() for kind, term in terms.items()} == pytest.approx(expected)
    total = expected["bg"] / 4 + expected["fg"] / 4 + expected["neg"] / 2
    assert affinity_loss(affinity, pairs).item() == pytest.approx(total)


def test_loss_is_differentiable() -> None:
    pairs = make_pairs(2, 4, 5)
    affinity = 0.1 + 0.8 * torch.rand(pairs["bg"].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lambda a: affinity_loss(a, pairs), affinity.requires_grad_())


@pytest.mark.parametrize(("label", "kind"), [(0, "bg"), (7, "fg"), (255, None)])
def test_kinds_without_pairs_contribute_nothing(label: int, kind: str | None) -> None:
    pairs = pair_labels(torch.full((1, 4, 5), label, dtype=torch.uint8), 3)
    features = make_features(1, 3, 4, 5).requires_grad_()
    terms = affinity_terms(pair_affinity(features, 3), pairs)
    assert {name for name, term in terms.items() if term.item() != 0} == ({kind} if kind else set())
    affinity_loss(pair_affinity(features, 3), pairs).backward()
    assert features.grad is not None and features.grad.isfinite().all()
    assert bool(features.grad.any()) == (kind is not None)


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_extreme_affinities_have_finite_gradients(extreme: float) -> None:
    pairs = make_pairs(1, 6, 6)
    affinity = torch.full(pairs["bg"].shape, extreme)
    affinity[~(pairs["bg"] | pairs["fg"] | pairs["neg"])] = math.nan
    loss = affinity_loss(affinity.requires_grad_(), pairs)
    loss.backward()
    assert loss.isfinite() and affinity.grad is not None and affinity.grad.isfinite().all()


def test_kinds_weigh_by_the_mean_over_the_whole_batch() -> None:
    """An image with many pairs counts more than one with few."""
    labels = torch.full((2, 4, 4), 255, dtype=torch.uint8)
    labels[0] = 0
    labels[1, 0, :2] = 0
    pairs = pair_labels(labels, 2)
    affinity = torch.ones(pairs["bg"].shape)
    affinity[1] = math.exp(-1)
    many = int(pairs["bg"][0].sum())
    assert affinity_terms(affinity, pairs)["bg"].item() == pytest.approx(1 / (many + 1), abs=1e-4)
