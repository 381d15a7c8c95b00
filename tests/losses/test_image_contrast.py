"""Contrast of images and of cells (MuSCLe): against loops over pairs, the bounds of Appendix A, and what happens without positives."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.losses.contrast import (
    PixelVectors,
    image_contrast,
    image_contrast_terms,
    image_pairs,
    pixel_contrast,
    supervised_contrast,
    supervised_contrast_terms,
)
from wsss_core.losses.regional import with_background

GOLDEN = Path(__file__).parents[3] / "shared/golden/muscle_image_contrast_compat.npz"
Loss = Callable[[Tensor, Tensor, float], Tensor]
LABELS = torch.tensor(
    [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0], [1, 0, 1]], dtype=torch.float64
)
"""A pair, three alike, images that overlap partially, one without a positive (6), two without any class (7, 8)."""


def embeddings_of(labels: Tensor, length: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(labels), length, generator=generator, dtype=torch.float64).requires_grad_()


def class_sets(labels: Tensor) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in labels]


def by_pairs(embeddings: Tensor, labels: Tensor, temperature: float, supervised: bool) -> Tensor:
    """Mean over anchors of Eq. 1 or Eq. A.2, one pair after the other."""
    sets, terms = class_sets(labels), []
    for i, own in enumerate(sets):
        positive, negative = [], []
        for j, other in enumerate(sets):
            if i == j or not own or not other:
                continue
            e = torch.exp(embeddings[i] @ embeddings[j] / (embeddings[i].norm() * embeddings[j].norm()) / temperature)
            if own == other:
                positive.append(e)
            elif not own & other:
                negative.append(e)
        p, q = sum(positive, embeddings.new_zeros(())), sum(negative, embeddings.new_zeros(()))
        if not positive and not negative:
            continue
        if supervised:
            terms.append(sum((-torch.log(e / (e + q)) for e in positive), embeddings.new_zeros(())))
        else:
            terms.append(-torch.log(p / (p + q)) if positive else torch.log(q / len(negative)))
    return torch.stack(terms).mean() if terms else 0 * embeddings.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize(("loss", "supervised"), [(image_contrast, False), (supervised_contrast, True)])
def test_value_and_gradient_are_those_of_the_pair_loop(loss: Loss, supervised: bool, temperature: float) -> None:
    embeddings = embeddings_of(LABELS)
    ours, expected = loss(embeddings, LABELS, temperature), by_pairs(embeddings, LABELS, temperature, supervised)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, embeddings)[0] for value in (ours, expected)))


@pytest.mark.parametrize("loss", [image_contrast, supervised_contrast])
def test_gradients(loss: Loss) -> None:
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS, 0.5), embeddings_of(LABELS, 3))


def test_pairs_are_alike_or_have_nothing_in_common() -> None:
    positive, negative = image_pairs(LABELS)
    sets = class_sets(LABELS)
    for i, own in enumerate(sets):
        for j, other in enumerate(sets):
            known = i != j and bool(own) and bool(other)
            assert bool(positive[i, j]) == (known and own == other)
            assert bool(negative[i, j]) == (known and not own & other)


def test_supervised_contrast_sums_over_positives_what_image_contrast_takes_together() -> None:
    labels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])  # one positive each: the same loss
    embeddings = embeddings_of(labels)
    torch.testing.assert_close(image_contrast(embeddings, labels), supervised_contrast(embeddings, labels))
    labels = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]])
    embeddings = embeddings_of(labels)
    assert float(supervised_contrast(embeddings, labels)) > float(image_contrast(embeddings, labels))


ALONE = torch.eye(4, dtype=torch.float64)  # every image has a class of its own: only negatives


def test_without_positives_image_contrast_pushes_apart_and_supervised_contrast_does_nothing() -> None:
    embeddings = embeddings_of(ALONE, 4)
    (gradient,) = torch.autograd.grad(supervised_contrast(embeddings, ALONE), embeddings)
    assert float(supervised_contrast(embeddings, ALONE)) == 0 and not gradient.any()
    before = image_contrast(embeddings, ALONE)
    (gradient,) = torch.autograd.grad(before, embeddings)
    assert before.isfinite() and gradient.abs().min() > 0
    after = embeddings.detach().clone().requires_grad_()
    for _ in range(500):
        (gradient,) = torch.autograd.grad(image_contrast(after, ALONE), after)
        after = (after - gradient).detach().requires_grad_()
    unit = functional.normalize(after.detach(), dim=1)
    cosine = unit @ unit.T
    assert torch.allclose(cosine[~torch.eye(4, dtype=torch.bool)], torch.tensor(-1 / 3, dtype=torch.float64), atol=1e-3), "as far as can be"


def test_without_positives_the_value_is_the_log_mean_of_the_negatives() -> None:
    embeddings = torch.tensor([[1.0, 0], [2, 0], [0, 3]], dtype=torch.float64)
    expected = np.mean([np.log((np.e**2 + 1) / 2)] * 2 + [0.0])  # cosines 1 and 0, 1 and 0, 0 and 0 at temperature 1/2
    assert float(image_contrast(embeddings, torch.eye(3), 0.5)) == pytest.approx(expected)


def test_without_negatives_nothing_is_left_to_do() -> None:
    labels = torch.ones(3, 2)
    embeddings = embeddings_of(labels)
    for loss in (image_contrast, supervised_contrast):
        value = loss(embeddings, labels)
        (gradient,) = torch.autograd.grad(value, embeddings)
        assert float(value) == 0 and not gradient.any()


NOTHING = {
    "one image": torch.tensor([[1.0, 0]]),
    "partial overlap": torch.tensor([[1.0, 0], [1, 1]]),
    "no classes": torch.zeros(3, 2),
    "none but one": torch.tensor([[1.0, 0], [0, 0], [0, 0]]),
    "no images": torch.zeros(0, 2),
}


@pytest.mark.parametrize("case", NOTHING)
def test_images_without_a_pair_give_nothing(case: str) -> None:
    embeddings = embeddings_of(NOTHING[case])
    for loss in (image_contrast, supervised_contrast):
        value = loss(embeddings, NOTHING[case])
        (gradient,) = torch.autograd.grad(value, embeddings)
        assert float(value) == 0 and not gradient.any()


@pytest.mark.parametrize("loss", [image_contrast, supervised_contrast])
def test_images_without_a_class_or_a_direction_change_nothing(loss: Loss) -> None:
    labels = LABELS[[0, 1, 2, 3, 5]]
    embeddings = embeddings_of(labels)
    expected = loss(embeddings, labels, 0.5)
    more = torch.cat([embeddings, torch.rand(2, 6, dtype=torch.float64), torch.zeros(1, 6, dtype=torch.float64)]).detach().requires_grad_()
    value = loss(more, torch.cat([labels, torch.zeros(2, 3), labels[:1]]), 0.5)
    (gradient,) = torch.autograd.grad(value, more)
    torch.testing.assert_close(value, expected)
    assert gradient.isfinite().all() and not gradient[5:].any()


@pytest.mark.parametrize("loss", [image_contrast, supervised_contrast])
def test_small_temperatures_and_low_precision_stay_finite(loss: Loss) -> None:
    embeddings = (1e3 * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))).requires_grad_()
    labels = functional.one_hot(torch.arange(8) % 4).float()
    exact = loss(embeddings.double(), labels, 0.01)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(embeddings.to(dtype), labels, 0.01)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(exact), rel=1e-4 if dtype == torch.float32 else 0.1)
        assert torch.autograd.grad(value, embeddings)[0].isfinite().all()


# Appendix A: gradients with respect to the anchor z_i, which is a unit vector as all others, before it is normalised.

E = math.e


def anchor_gradient(terms: Callable[..., Tensor], anchor: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    anchor = anchor.detach().requires_grad_()
    similarity = torch.cat([positives, negatives]) @ anchor
    positive = torch.arange(len(similarity)) < len(positives)
    return torch.autograd.grad(terms(similarity, positive, ~positive), anchor)[0]


def bound_imc(n: int, m: int) -> float:
    return 1.0 if n == 0 else math.sqrt(2) * m * E / (n + m * E)  # Eq. A.6


def bound_sup(n: int, m: int) -> float:
    return 0.0 if n == 0 else math.sqrt(2) * n * m * E / (1 + m * E)  # Eq. A.10


BOUNDS = [(image_contrast_terms, bound_imc), (supervised_contrast_terms, bound_sup)]


@pytest.mark.parametrize(("terms", "bound"), BOUNDS)
@pytest.mark.parametrize(("n", "m"), [(0, 1), (0, 5), (1, 1), (1, 6), (6, 1), (3, 3), (4, 0)])
def test_gradients_keep_the_bounds_of_appendix_a(terms: Callable[..., Tensor], bound: Callable[[int, int], float], n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(10 * n + m)
    for _ in range(200):
        # No coordinate is negative, so no dot product is; powers put vectors from the middle to the axes, where the bounds are.
        power = float(torch.empty(()).exponential_(0.3, generator=generator))
        vectors = functional.normalize(torch.rand(1 + n + m, 3, generator=generator, dtype=torch.float64) ** power + 1e-30, dim=1)
        gradient = anchor_gradient(terms, vectors[0], vectors[1 : 1 + n], vectors[1 + n :])
        assert float(gradient.norm()) <= bound(n, m) + 1e-12


@pytest.mark.parametrize(("terms", "bound"), BOUNDS)
@pytest.mark.parametrize(("n", "m"), [(0, 2), (1, 1), (2, 3), (5, 1)])
def test_the_bounds_are_reached(terms: Callable[..., Tensor], bound: Callable[[int, int], float], n: int, m: int) -> None:
    axes = torch.eye(3, dtype=torch.float64)
    gradient = anchor_gradient(terms, axes[0], axes[1].expand(n, 3), axes[0].expand(m, 3))  # positives at right angles, negatives parallel
    assert float(gradient.norm()) == pytest.approx(bound(n, m), abs=1e-12)


def test_bounds_need_that_also_positives_and_negatives_are_no_opposites() -> None:
    """The premise of Eq. A.6, dot products with z_i of at least 0, is too weak: a positive and negatives at right angles to it suffice."""
    axes = torch.eye(3, dtype=torch.float64)
    gradient = anchor_gradient(image_contrast_terms, axes[0], axes[1:2], -axes[1].expand(20, 3))
    assert float(gradient.norm()) == pytest.approx(2 * 20 / 21) and float(gradient.norm()) > bound_imc(1, 20)


def test_gradient_without_positives_is_equation_a4() -> None:
    vectors = functional.normalize(embeddings_of(torch.zeros(6, 1)).detach(), dim=1)
    weights = torch.softmax(vectors[1:] @ vectors[0], dim=0)
    gradient = anchor_gradient(image_contrast_terms, vectors[0], vectors[:0], vectors[1:])
    torch.testing.assert_close(gradient, weights @ vectors[1:])
    assert float(gradient.norm()) <= 1
    assert not anchor_gradient(supervised_contrast_terms, vectors[0], vectors[:0], vectors[1:]).any()


@pytest.mark.skipif(not GOLDEN.is_file(), reason="golden vectors not here")
def test_published_form_on_golden_vectors() -> None:
    """MuSCLe's code: pairs (i, j > i), anchors with a positive and more negatives than positives, the sum over them divided by N."""
    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN, allow_pickle=False).items()}
    unit = functional.normalize(golden["embeddings"], dim=1)
    positive, negative = (pairs.triu() for pairs in image_pairs(golden["labels"]))
    anchors = positive.any(dim=1) & (negative.sum(dim=1) > positive.sum(dim=1))
    terms = image_contrast_terms(unit @ unit.T / 0.1, positive, negative)
    assert 0 < int(anchors.sum()) < len(unit)
    torch.testing.assert_close(terms[anchors].sum() / len(unit), golden["loss"], rtol=1e-5, atol=0)


def pixels_by_cell(features: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    total, count = features.new_zeros(()), 0
    for n, y, x in valid.nonzero().tolist():
        u, v = features[n, :, y, x].relu(), targets[n, :, y, x].relu()
        if u.any() and v.any():
            total = total - u @ v / (u.norm() * v.norm())
        count += 1
    return total / max(count, 1)


def maps_of(seed: int) -> Tensor:
    return torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_pixel_contrast_is_that_of_the_loop() -> None:
    features, targets = maps_of(0), maps_of(1)
    valid = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(2)) < 0.6
    valid[1] = False
    for given, mask in ((valid, valid), (None, torch.ones_like(valid))):
        ours, expected = pixel_contrast(features, targets, given), pixels_by_cell(features, targets, mask)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(*(torch.autograd.grad(loss, features)[0] for loss in (ours, expected)))
    assert torch.autograd.gradcheck(lambda u: pixel_contrast(u, targets.detach(), valid), features)


@pytest.mark.parametrize("shortest", [0.0, 0.7])
def test_vectors_of_pixel_contrast(shortest: float) -> None:
    features, targets = maps_of(0), maps_of(1)

    def by_cell(vectors: Callable[[Tensor], Tensor]) -> Tensor:
        u, v = vectors(features), vectors(targets.detach())
        return -((u * v).sum(dim=1) / (u.norm(dim=1).clamp(min=shortest) * v.norm(dim=1).clamp(min=shortest))).mean()

    forms: dict[PixelVectors, Callable[[Tensor], Tensor]] = {
        "background": with_background,
        "centred": lambda maps: maps - maps.mean(dim=(2, 3), keepdim=True),
    }
    for name, vectors in forms.items():
        ours, expected = pixel_contrast(features, targets, vectors=name, shortest=shortest), by_cell(vectors)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(*(torch.autograd.grad(loss, features)[0] for loss in (ours, expected)))
    if shortest:
        assert float(pixel_contrast(features, targets, shortest=shortest)) == pytest.approx(float(by_cell(torch.relu)))


def test_pixel_contrast_has_no_gradient_on_the_targets_side() -> None:
    features, targets = maps_of(0), maps_of(1)
    pixel_contrast(features, targets).backward()
    assert targets.grad is None and features.grad is not None and features.grad.any()


def test_pixel_contrast_of_equal_and_of_other_cells() -> None:
    features = maps_of(0).detach().abs()
    assert float(pixel_contrast(features, 3 * features)) == pytest.approx(-1)
    assert float(pixel_contrast(features, features * torch.tensor([1.0, 0, 0, 0]).view(4, 1, 1))) > -0.9
    assert float(pixel_contrast(features, -features)) == 0  # shows nothing


def test_pixel_contrast_without_valid_cells_is_0() -> None:
    features = maps_of(0)
    loss = pixel_contrast(features, maps_of(1), torch.zeros(3, 2, 5, dtype=torch.bool))
    loss.backward()
    assert float(loss) == 0 and features.grad is not None and not features.grad.any()


def test_cells_of_zeros_count_as_cosine_0_and_have_no_gradient() -> None:
    features, targets = maps_of(0).detach().abs(), maps_of(1).detach().abs()
    cosine = -float(pixel_contrast(features, targets)) * 30 - float(functional.cosine_similarity(features, targets)[0, 1, 1])
    features[0, :, 1, 1] = 0
    features.requires_grad_()
    loss = pixel_contrast(features, targets)
    loss.backward()
    assert -float(loss) * 30 == pytest.approx(cosine)
    assert features.grad is not None and features.grad.isfinite().all() and not features.grad[0, :, 1, 1].any()
    assert features.grad[0, :, 0, 0].any()
