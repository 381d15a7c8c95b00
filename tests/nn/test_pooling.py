"""Pooling of patch scores: adaptive-K against Algorithm 1 as printed, and the other poolings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wsss_core.nn.pooling import adaptive_k_pool, pool_patches

GOLDEN = Path(__file__).parents[3] / "shared/golden/apc_adaptive_k.npz"


def literal(patch_scores: Tensor, k: int, theta: float) -> tuple[Tensor, Tensor]:
    """APC, Algorithm 1, line by line, for one image [S, C]."""
    scores, used = [], []
    for column in patch_scores.T:
        ordered = sorted(column.tolist(), reverse=True)
        selected = ordered[:1]
        for i in range(2, min(k, len(ordered)) + 1):
            current = ordered[:i]
            before = sum(selected) / len(selected)
            if before and (sum(current) / len(current)) / before > theta:
                selected = current
        scores.append(sum(selected) / len(selected))
        used.append(len(selected))
    return torch.tensor(scores, dtype=patch_scores.dtype), torch.tensor(used)


def scores_of(images: int, patches: int, classes: int, power: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, patches, classes, generator=generator, dtype=torch.float64) ** power


@pytest.mark.parametrize("theta", [0.0, 0.5, 0.9, 0.97, 1.0])
@pytest.mark.parametrize(("patches", "k"), [(36, 6), (36, 1), (4, 6), (1, 3), (50, 50)])
def test_adaptive_k_is_algorithm_1(patches: int, k: int, theta: float) -> None:
    for power in (0.1, 1, 6):
        given = scores_of(3, patches, 5, power, seed=patches + k)
        given[0, :, 0] = 0  # a class that no patch shows
        given[1, :, 1] = 0.25  # ties all through
        scores, used = adaptive_k_pool(given, k, theta)
        expected = [literal(image, k, theta) for image in given]
        assert torch.equal(used, torch.stack([count for _, count in expected]))
        torch.testing.assert_close(scores, torch.stack([score for score, _ in expected]), rtol=1e-12, atol=0)


def test_how_many_patches_count() -> None:
    given = torch.tensor([0.9, 0.85, 0.8, 0.1, 0.1]).view(1, 5, 1)
    assert adaptive_k_pool(given, 6, 0.9)[1].item() == 3
    assert adaptive_k_pool(given, 2, 0.9)[1].item() == 2
    assert adaptive_k_pool(given, 6, 0.98)[1].item() == 1


def test_only_what_counts_gets_a_gradient() -> None:
    given = torch.tensor([0.1, 0.85, 0.9, 0.8]).view(1, 4, 1).requires_grad_()
    adaptive_k_pool(given, 6, 0.9)[0].sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(given.grad.flatten(), torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]))
    leaf = scores_of(2, 9, 3, 1, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: adaptive_k_pool(z, 4, 0.9)[0], leaf)


def test_the_other_poolings() -> None:
    given = scores_of(2, 12, 3, 1, seed=2)
    ordered = given.sort(dim=1, descending=True).values
    for pooling, expected in {"average": given.mean(dim=1), "max": ordered[:, 0], "topk": ordered[:, :5].mean(dim=1)}.items():
        torch.testing.assert_close(pool_patches(given, pooling, 5, 0.9), expected)
    assert torch.equal(pool_patches(given, "adaptive", 5, 0.9), adaptive_k_pool(given, 5, 0.9)[0])


def test_the_reference_transcription() -> None:
    if not GOLDEN.exists():
        pytest.skip("golden vectors are not here")
    golden = np.load(GOLDEN)
    scores, used = adaptive_k_pool(torch.from_numpy(golden["patch_scores"])[None], int(golden["K"]), float(golden["theta"]))
    np.testing.assert_array_equal(used[0].numpy(), golden["k"])
    np.testing.assert_allclose(scores[0].numpy(), golden["image_scores"], rtol=1e-12)
