"""Regional self-attention against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from wsss_core.nn.attention import RegionalSelfAttention


def by_loops(features: Tensor, maps: Tensor, kernel: str, temperature: float) -> Tensor:
    n, _, h, w = features.shape
    y, c = features.double().flatten(2), maps.double().flatten(2)
    out = torch.zeros_like(c)
    for tile in range(n):
        for p in range(h * w):
            total = 0.0
            for q in range(h * w):
                a, b = y[tile, :, p], y[tile, :, q]
                norm = float(a.norm() * b.norm())
                cosine = float(a @ b) / norm if norm > 0 else 0.0
                f = max(0.0, cosine) if kernel == "relu_cosine" else math.exp(cosine / temperature)
                out[tile, :, p] += f * c[tile, :, q]
                total += f
            out[tile, :, p] /= total
    return out.view_as(maps)


@pytest.mark.parametrize("kernel", ["relu_cosine", "softmax_cosine"])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (5, 2)])
def test_a_cell_becomes_the_weighted_mean_of_its_tile(kernel: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    features, maps = torch.randn(2, 6, *size), torch.rand(2, 3, *size)
    refined = RegionalSelfAttention(kernel, 0.3)(features, maps)  # type: ignore[arg-type]
    torch.testing.assert_close(refined.double(), by_loops(features, maps, kernel, 0.3), rtol=0, atol=5e-5)


def test_it_spreads_to_like_cells_and_not_to_unlike_ones() -> None:
    features = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).view(1, 2, 1, 3)
    maps = torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 1, 3)
    torch.testing.assert_close(RegionalSelfAttention()(features, maps).flatten(), torch.tensor([0.5, 0.5, 0.0]), rtol=0, atol=1e-4)


def test_large_features_do_not_overflow_and_dead_cells_keep_their_value() -> None:
    features = torch.randn(1, 2048, 4, 4) * 1e4
    features[..., 0, 0] = 0
    maps = torch.rand(1, 2, 4, 4)
    refined = RegionalSelfAttention()(features, maps)
    assert refined.isfinite().all()
    torch.testing.assert_close(refined[..., 0, 0], maps[..., 0, 0])


def test_gradients() -> None:
    features = torch.rand(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    maps = torch.rand(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    for kernel in ("relu_cosine", "softmax_cosine"):
        assert torch.autograd.gradcheck(RegionalSelfAttention(kernel), (features, maps))  # type: ignore[arg-type]


def test_wrong_values_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown kernel"):
        RegionalSelfAttention("cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature"):
        RegionalSelfAttention(temperature=0)
