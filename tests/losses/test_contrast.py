"""Foreground contrast against a loop over pairs of images and tiles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsss_core.losses.contrast import foreground_contrast, foreground_vectors


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
