"""APC's losses: patch contrast against loops over pairs, empty sets; the image's cross-entropy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wsss_core.losses.classification import probability_cross_entropy
from wsss_core.losses.contrast import patch_contrast

EPSILON = 0.85


def by_pairs(embeddings: Tensor, scores: Tensor, labels: Tensor, epsilon: float) -> float:
    """Eqs. 4 to 6 as printed, one pair after the other."""
    total = 0.0
    for patches, probabilities, present in zip(embeddings, scores, labels, strict=True):
        for c in present.nonzero().flatten().tolist():
            high = [f for f, z in zip(patches, probabilities[:, c], strict=True) if z > epsilon]
            low = [f for f, z in zip(patches, probabilities[:, c], strict=True) if z < 1 - epsilon]
            together = [1 - alike(a, b) for i, a in enumerate(high) for j, b in enumerate(high) if i != j]
            apart = [alike(a, b) for a in high for b in low]
            total += sum(together) / max(len(together), 1) + sum(apart) / max(len(apart), 1)
    return total / len(embeddings)


def alike(a: Tensor, b: Tensor) -> float:
    norms = float(a.norm() * b.norm())
    return (1 + (float(a @ b) / norms if norms else 0.0)) / 2


def made(seed: int = 0, images: int = 3, patches: int = 20, size: int = 5, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Patches of which many are sure of what they show."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(images, patches, size, generator=generator, dtype=torch.float64)
    scores = (12 * torch.randn(images, patches, classes, generator=generator, dtype=torch.float64)).softmax(dim=2)
    labels = torch.tensor([[1.0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.float64)
    return embeddings, scores, labels


def test_patch_contrast_is_that_of_the_pairs() -> None:
    for seed in range(5):
        embeddings, scores, labels = made(seed)
        assert patch_contrast(embeddings, scores, labels, EPSILON).item() == pytest.approx(by_pairs(embeddings, scores, labels, EPSILON))
    assert patch_contrast(embeddings, scores, labels, 0.5).item() == pytest.approx(by_pairs(embeddings, scores, labels, 0.5))


def test_its_gradient() -> None:
    embeddings, scores, labels = made(1)
    assert torch.autograd.gradcheck(lambda f: patch_contrast(f, scores, labels, EPSILON), embeddings.requires_grad_())
    scores.requires_grad_()
    patch_contrast(embeddings, scores, labels, EPSILON).backward()
    assert scores.grad is None  # they choose, no more


@pytest.mark.parametrize(
    ("high", "low", "expected"),
    [
        (0, 4, 0.0),  # no patch is sure
        (1, 0, 0.0),  # one alone has no pair
        (2, 0, 0.5),  # right angles: 1 - (1 + 0) / 2
        (1, 2, 0.5),
        (2, 2, 1.0),
    ],
)
def test_sets_that_are_empty_or_small(high: int, low: int, expected: float) -> None:
    patches = high + low + 1
    embeddings = torch.eye(patches)[None].clone().requires_grad_()
    scores = torch.tensor([0.95] * high + [0.05] * low + [0.5]).view(1, patches, 1)
    loss = patch_contrast(embeddings, scores, torch.ones(1, 1), EPSILON)
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert embeddings.grad is not None and torch.isfinite(embeddings.grad).all()


def test_classes_that_are_not_in_the_image_do_not_count() -> None:
    embeddings, scores, labels = made(2)
    assert patch_contrast(embeddings, scores, torch.zeros_like(labels), EPSILON).item() == 0


def test_an_embedding_of_zero_has_no_direction_and_no_gradient() -> None:
    embeddings, scores, labels = made(3)
    scores[0, 0] = torch.tensor([0.97, 0.01, 0.01, 0.01])
    embeddings[0, 0] = 0
    embeddings.requires_grad_()
    loss = patch_contrast(embeddings, scores, labels, EPSILON)
    loss.backward()
    assert loss.item() == pytest.approx(by_pairs(embeddings.detach(), scores, labels, EPSILON))
    assert embeddings.grad is not None and not embeddings.grad[0, 0].any() and torch.isfinite(embeddings.grad).all()


def test_it_draws_together_and_pushes_apart() -> None:
    embeddings = torch.tensor([[[1.0, 0.2], [1.0, 0.6], [1.0, 0.0]]], requires_grad=True)
    scores = torch.tensor([[[0.9], [0.9], [0.1]]])
    patch_contrast(embeddings, scores, torch.ones(1, 1), EPSILON).backward()
    assert embeddings.grad is not None
    with torch.no_grad():
        moved = embeddings - 0.1 * embeddings.grad
        (together, apart), (together_before, apart_before) = (
            (alike(e[0, 0], e[0, 1]), alike(e[0, 1], e[0, 2])) for e in (moved, embeddings)
        )
    assert together > together_before and apart < apart_before


def test_the_cross_entropy_of_probabilities() -> None:
    generator = torch.Generator().manual_seed(4)
    given, labels = torch.rand(3, 5, generator=generator), torch.randint(0, 2, (3, 5), generator=generator).float()
    by_loop = [
        -(t * torch.log(y) + (1 - t) * torch.log(1 - y)) for y, t in zip(given.double().flatten(), labels.double().flatten(), strict=True)
    ]
    assert probability_cross_entropy(given, labels).item() == pytest.approx(float(sum(by_loop)) / len(by_loop), rel=1e-5)
    certain = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss = probability_cross_entropy(certain, torch.tensor([[1.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(13.8, abs=0.1) and certain.grad is not None and torch.isfinite(certain.grad).all()
