"""Foreground contrast against a loop over pairs of images and tiles."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from wsss_core.losses.contrast import foreground_contrast, foreground_vectors, foreground_weights, sharing_pairs
from wsss_core.nn.tiles import split


def by_pairs(vectors: Tensor, alpha: float, eps: float) -> Tensor:
    count = len(vectors) // 4
    f = vectors.double()
    total, pairs = f.new_zeros(()), 0
    for i in range(count):
        for r in range(count):
            if i == r:
                continue
            logs, weight, known = [], 0.0, 0
            for j in range(4):
                for s in range(4):
                    a, b = f[j * count + i], f[s * count + r]
                    if float(a.norm()) == 0 or float(b.norm()) == 0:
                        continue
                    cosine = a @ b / (a.norm() * b.norm())
                    logs.append(torch.log(cosine.clamp(min=0) + eps))
                    weight += float(cosine)
                    known += 1
            if known:
                total = total + torch.stack(logs).mean() / (1 + math.exp(-alpha * weight))
                pairs += 1
    return -total / max(pairs, 1)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_value_and_gradient_are_those_of_the_pair_loop(count: int, signed: bool) -> None:
    torch.manual_seed(count)
    vectors = (torch.randn if signed else torch.rand)(4 * count, 7).requires_grad_()
    ours = foreground_contrast(vectors, alpha=0.25)
    expected = by_pairs(vectors, 0.25, 1e-5)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss, vectors, retain_graph=True)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_tiles_without_foreground_are_left_out() -> None:
    torch.manual_seed(0)
    vectors = torch.rand(12, 5)
    vectors[[1, 4, 7]] = 0
    torch.testing.assert_close(foreground_contrast(vectors).double(), by_pairs(vectors, 0.25, 1e-5), rtol=1e-5, atol=1e-6)
    empty = torch.zeros(8, 5, requires_grad=True)
    loss = foreground_contrast(empty)
    loss.backward()
    assert float(loss) == 0 and empty.grad is not None and not empty.grad.any()


def test_one_image_gives_nothing() -> None:
    vectors = torch.rand(4, 5, requires_grad=True)
    loss = foreground_contrast(vectors)
    loss.backward()
    assert float(loss) == 0 and vectors.grad is not None and not vectors.grad.any()


def test_like_foregrounds_cost_less_than_unlike_ones() -> None:
    alike = torch.ones(8, 4) + 0.1 * torch.rand(8, 4)
    unlike = torch.eye(8)
    assert float(foreground_contrast(alike)) < 0.1 < float(foreground_contrast(unlike))


def test_of_all_pairs_those_that_share_a_class_count() -> None:
    torch.manual_seed(0)
    vectors = torch.rand(12, 7).requires_grad_()
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0]])
    pairs = sharing_pairs(labels)
    assert pairs.tolist() == [[True, False, True], [False, True, True], [True, True, True]]
    among = [foreground_contrast(vectors[torch.arange(12) % 3 != left_out]) for left_out in (1, 0)]
    torch.testing.assert_close(foreground_contrast(vectors, pairs=pairs), torch.stack(among).mean())
    torch.testing.assert_close(foreground_contrast(vectors, pairs=torch.ones(3, 3, dtype=torch.bool)), foreground_contrast(vectors))
    nothing = foreground_contrast(vectors, pairs=sharing_pairs(torch.eye(3)))
    assert float(nothing) == 0 and not torch.autograd.grad(nothing, vectors)[0].any()
    assert not sharing_pairs(torch.zeros(2, 3)).any()


def test_pairs_that_share_nothing_do_not_thin_out_the_others() -> None:
    """Of 16 images two show one class, the others one each: their foregrounds are orthogonal, a constant without a gradient."""
    torch.manual_seed(0)
    labels = torch.eye(15)[[0, *range(15)]]
    features, maps = torch.rand(64, 6, 2, 2), torch.ones(64, 15, 2, 2)
    features.requires_grad_()
    vectors = foreground_vectors(features, maps, labels.repeat(4, 1))
    sharing, every = (foreground_contrast(vectors, pairs=pairs) for pairs in (sharing_pairs(labels), None))
    (strong,), (weak,) = (torch.autograd.grad(loss, features, retain_graph=True) for loss in (sharing, every))
    torch.testing.assert_close(strong, weak * 16 * 15 / 2)
    assert float(every) > 5 and float(sharing) < 1


@pytest.mark.parametrize("kind", ["cam", "relu", "sigmoid"])
def test_what_weighs_the_features(kind: Literal["cam", "relu", "sigmoid"]) -> None:
    torch.manual_seed(0)
    whole = 3 * torch.randn(2, 3, 6, 8)
    whole[0, 0, :3, :4] = -2.0  # nothing of the class in the top left tile
    whole[0, 1] = 0.5 * torch.rand(6, 8) + 0.2  # nowhere 1
    whole[1, 2, :3, :4] = -1.0
    whole[1, 2, 0, 0] = 0.01  # next to nothing
    expected = {"cam": whole.relu() / whole.amax(dim=(2, 3), keepdim=True).clamp(min=1), "relu": whole.relu(), "sigmoid": whole.sigmoid()}[
        kind
    ]
    if kind != "sigmoid":
        expected[1, 2, 0, 0] = 0
    torch.testing.assert_close(foreground_weights(split(whole), kind), split(expected))
    assert foreground_weights(split(whole).half(), kind).dtype == torch.float32


@pytest.mark.parametrize("kind", ["cam", "relu", "sigmoid"])
@pytest.mark.parametrize("height", [1e-9, 1e-4, 1e-2, 0.04, 0.06, 1.0, 30.0])
def test_no_foreground_is_so_faint_that_it_has_a_large_gradient(kind: Literal["cam", "relu", "sigmoid"], height: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features, maps = torch.rand(8, 6, 4, 4, generator=generator), (height * torch.rand(8, 1, 4, 4, generator=generator)).requires_grad_()
    foreground_contrast(foreground_vectors(features, foreground_weights(maps, kind))).backward()
    assert maps.grad is not None and maps.grad.norm() < 1


def test_the_tiles_have_to_come_in_fours() -> None:
    with pytest.raises(ValueError, match="4 tiles"):
        foreground_contrast(torch.rand(6, 3))


def test_foreground_vectors_sum_features_under_the_maps_of_present_classes() -> None:
    torch.manual_seed(0)
    features, maps = torch.rand(2, 3, 2, 2), torch.rand(2, 4, 2, 2)
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 0]])
    vectors = foreground_vectors(features, maps, labels).view(2, 4, 3)
    for n in range(2):
        for g in range(4):
            for d in range(3):
                expected = float((features[n, d] * maps[n, g]).sum() * labels[n, g])
                assert float(vectors[n, g, d]) == pytest.approx(expected, abs=1e-5)
    assert foreground_vectors(features, maps).view(2, 4, 3).all()
