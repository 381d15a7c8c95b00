"""Regional self-attention against loops in float64."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from two_branches import attended

from wsss_core.nn.attention import Kernel, RegionalSelfAttention, kept_deviation

KERNELS = get_args(Kernel)


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


def tiles(count: int = 4, channels: int = 64, side: int = 8, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Features as a network's last ReLU leaves them, smooth with something in common to all cells, and the maps of a random classifier."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, channels, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
    features = (smooth + torch.randn(1, channels, 1, 1, generator=generator)).relu()
    return features, torch.einsum("gd,ndhw->nghw", torch.randn(classes, channels, generator=generator), features)


@pytest.mark.parametrize("kernel", ["relu_cosine", "softmax_cosine"])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (5, 2)])
def test_a_cell_becomes_the_weighted_mean_of_its_tile(kernel: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    features, maps = torch.randn(2, 6, *size), torch.rand(2, 3, *size)
    refined = RegionalSelfAttention(kernel, 0.3)(features, maps)  # type: ignore[arg-type]
    torch.testing.assert_close(refined.double(), by_loops(features, maps, kernel, 0.3), rtol=0, atol=5e-5)


@pytest.mark.parametrize("kernel", ["centred_cosine", "relu_cosine"])
def test_it_spreads_to_like_cells_and_not_to_unlike_ones(kernel: Kernel) -> None:
    features = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).view(1, 2, 1, 3)
    maps = torch.tensor([1.0, 0.0, 0.0]).view(1, 1, 1, 3)
    torch.testing.assert_close(RegionalSelfAttention(kernel)(features, maps).flatten(), torch.tensor([0.5, 0.5, 0.0]), rtol=0, atol=1e-4)


def test_the_default_masks_features_of_one_sign_and_keeps_half_of_the_deviation() -> None:
    """The ReLU on the cosine of features that are not negative masks nothing: the map becomes nearly its mean."""
    features, maps = tiles()
    assert features.min() == 0
    kept = {kernel: float(kept_deviation(RegionalSelfAttention(kernel)(features, maps), maps)) for kernel in KERNELS}
    assert float(kept_deviation(RegionalSelfAttention()(features, maps), maps)) == kept["centred_cosine"] > 0.5 > kept["relu_cosine"]
    masked = {kernel: (RegionalSelfAttention(kernel).weights(features.flatten(2)) == 0).float().mean() for kernel in KERNELS}
    assert masked["centred_cosine"] > 0.2 and masked["relu_cosine"] == 0


def test_the_printed_kernel_is_the_printed_formula() -> None:
    features, maps = tiles(2, side=5)
    y, c = (each.double().flatten(2) for each in (0.2 * features, maps))
    f = torch.einsum("ndp,ndq->npq", y, y).exp()  # Eq. 6
    expected = torch.einsum("npq,ngq->ngp", f, c) / f.sum(dim=2)[:, None]  # Eqs. 4 and 5
    torch.testing.assert_close(
        RegionalSelfAttention("softmax_dot")(0.2 * features, maps).flatten(2).double(), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_printed_kernel_does_not_overflow(dtype: torch.dtype) -> None:
    """Products of some 1e4, whose exponential has no float: Eqs. 5 and 6 together have."""
    features, maps = tiles(2, channels=2048, side=4)
    features, maps = (4 * features).to(dtype).requires_grad_(), maps.to(dtype).requires_grad_()
    assert features.float().square().sum(dim=1).max() > 1e4
    with torch.autocast("cpu", torch.bfloat16 if dtype == torch.float32 else dtype):
        refined = RegionalSelfAttention("softmax_dot")(features, maps)
    expected = attended(features.detach().double(), maps.detach().double(), "softmax_dot", 1)
    torch.testing.assert_close(refined.double(), expected, rtol=1e-2, atol=1e-2)
    refined.square().sum().backward()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in (features, maps))


@pytest.mark.parametrize("kernel", KERNELS)
def test_similarities_are_computed_in_full_precision(kernel: Kernel) -> None:
    features, maps = tiles(2, side=4)
    full = RegionalSelfAttention(kernel)(features, maps)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(RegionalSelfAttention(kernel)(features, maps), full)


@pytest.mark.parametrize("kernel", ["relu_cosine", "softmax_cosine", "centred_cosine"])
def test_large_features_do_not_overflow(kernel: Kernel) -> None:
    assert RegionalSelfAttention(kernel)(torch.randn(1, 2048, 4, 4) * 1e4, torch.rand(1, 2, 4, 4)).isfinite().all()


def test_cells_without_a_direction_keep_their_value() -> None:
    features, maps = torch.randn(1, 2048, 4, 4) * 1e4, torch.rand(1, 2, 4, 4)
    features[..., 0, 0] = 0
    torch.testing.assert_close(RegionalSelfAttention("relu_cosine")(features, maps)[..., 0, 0], maps[..., 0, 0])
    features[..., 0, 0] = features.flatten(2)[..., 1:].mean(dim=2)  # the mean of the tile
    torch.testing.assert_close(RegionalSelfAttention("centred_cosine")(features, maps)[..., 0, 0], maps[..., 0, 0], rtol=0, atol=1e-4)
    even = torch.ones(1, 8, 4, 4)
    torch.testing.assert_close(RegionalSelfAttention("centred_cosine")(even, maps), maps)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e-2])
def test_cells_near_the_mean_of_the_tile_have_no_large_gradient(size: float) -> None:
    """A direction's gradient is one over its length: features that are all but even would get a huge one."""
    generator = torch.Generator().manual_seed(0)
    even, noise = torch.rand(1, 64, 1, 1, generator=generator) + 1, torch.randn(1, 64, 4, 4, generator=generator)
    features, maps = (even + size * noise).requires_grad_(), torch.randn(1, 3, 4, 4, generator=generator)
    RegionalSelfAttention("centred_cosine")(features, maps).square().sum().backward()
    assert features.grad is not None and features.grad.norm() < 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_what_is_kept_of_the_deviation(dtype: torch.dtype) -> None:
    maps = torch.randn(3, 2, 4, 5, dtype=torch.float64).to(dtype)
    mean = maps.mean(dim=(2, 3), keepdim=True)
    for share in (0, 0.25, 1):
        assert float(kept_deviation(mean + share * (maps - mean), maps)) == pytest.approx(share, abs=1e-2)
    flat = mean.expand_as(maps).contiguous()
    assert float(kept_deviation(0 * flat, 0 * flat)) == 1 and not kept_deviation(maps.requires_grad_(), maps).requires_grad


def test_gradients() -> None:
    features = torch.rand(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    maps = torch.rand(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    for kernel in ("centred_cosine", "softmax_dot", "relu_cosine", "softmax_cosine"):
        assert torch.autograd.gradcheck(RegionalSelfAttention(kernel), (features, maps))  # type: ignore[arg-type]


def test_wrong_values_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown kernel"):
        RegionalSelfAttention("cosine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature"):
        RegionalSelfAttention(temperature=0)
