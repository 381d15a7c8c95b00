"""Hybrid classification loss of MuSCLe: its focal and its pair term against loops over classes, and against the published values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.losses.classification import focal_loss, hybrid_loss, multilabel_soft_margin, pair_loss, score_pair_loss

GOLDEN = Path(__file__).parents[3] / "shared/golden/muscle_pair_focal.npz"


def made(images: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(images + classes)
    logits = 2 * torch.randn(images, classes, generator=generator, dtype=torch.float64)
    labels = (torch.rand(images, classes, generator=generator) < 0.4).double()
    labels[0], labels[1] = 0, 1  # without a class, with all classes
    return logits.requires_grad_(), labels


def focal_by_class(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    total = logits.new_zeros(())
    for scores, truth in zip(logits, labels, strict=True):
        for score, present in zip(scores, truth, strict=True):
            p = 1 / (1 + torch.exp(-score))
            right = p if present else 1 - p
            total = total - 0.5 * (1 - right) ** gamma * torch.log(right)
    return total / len(logits)


def pairs_by_class(probabilities: Tensor, labels: Tensor) -> Tensor:
    terms = []
    for p, y in zip(probabilities, labels, strict=True):
        total = p.new_zeros(())
        for k in range(len(p)):
            for j in range(len(p)):
                absent = p[k] if y[k] == 0 else 0 * p[k]
                present = p[j] if y[j] == 1 else 0 * p[j]
                total = total + torch.exp(absent - present)
        terms.append(torch.log(1 + total / len(p) ** 2))
    return torch.stack(terms)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_is_that_of_the_loop(gamma: float) -> None:
    logits, labels = made()
    ours, expected = focal_loss(logits, labels, gamma), focal_by_class(logits, labels, gamma)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, expected)))


def test_without_focus_it_is_half_the_cross_entropy_summed_over_classes() -> None:
    logits, labels = made(classes=7)
    torch.testing.assert_close(focal_loss(logits, labels, gamma=0), 3.5 * multilabel_soft_margin(logits, labels))


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_pair_loss_is_that_of_the_loop(classes: int) -> None:
    logits, labels = made(classes=classes)
    ours, expected = pair_loss(logits, labels), pairs_by_class(logits.sigmoid(), labels).mean()
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, expected)))


def test_pair_loss_where_there_is_no_pair() -> None:
    sure = torch.full((1, 4), 50.0, dtype=torch.float64)
    none, every = torch.zeros(1, 4), torch.ones(1, 4)
    for labels, right, wrong in ((none, math.log(2), math.log(1 + math.e)), (every, math.log(1 + 1 / math.e), math.log(2))):
        sign = 2 * labels[0, 0] - 1
        assert float(pair_loss(sign * sure, labels)) == pytest.approx(right)
        assert float(pair_loss(-sign * sure, labels)) == pytest.approx(wrong)


def test_score_pair_loss_is_that_of_the_loop() -> None:
    logits, labels = made()
    terms = []
    for s, y in zip(logits, labels, strict=True):
        pairs = [torch.exp(s[u] - s[v]) for u in range(len(s)) for v in range(len(s)) if y[u] == 0 and y[v] == 1]
        terms.append(torch.log(1 + sum(pairs, logits.new_zeros(()))))
    ours, expected = score_pair_loss(logits, labels), torch.stack(terms).mean()
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients)
    assert not gradients[0][:2].any(), "without a class or with all there is no pair"


def test_a_pair_in_the_wrong_order_is_not_given_up() -> None:
    """Of probabilities the gradient vanishes where both are sure; of scores it is the larger the worse they rank."""
    logits, labels = torch.tensor([[-9.0, 9.0, -9.0]], requires_grad=True), torch.tensor([[1.0, 0, 0]])
    scores, probabilities = (torch.autograd.grad(loss(logits, labels), logits)[0] for loss in (score_pair_loss, pair_loss))
    torch.testing.assert_close(scores, torch.tensor([[-1.0, 1, 0]]), rtol=0, atol=1e-4)
    assert probabilities.abs().max() < 1e-4


def test_better_ranks_cost_less() -> None:
    labels = torch.tensor([[1.0, 0, 0]])
    right, wrong = torch.tensor([[2.0, -2, -2]]), torch.tensor([[-2.0, 2, 2]])
    for loss in (focal_loss, pair_loss, score_pair_loss, hybrid_loss):
        assert float(loss(right, labels)) < float(loss(0 * right, labels)) < float(loss(wrong, labels))


def test_hybrid_loss_is_the_sum_of_three() -> None:
    logits, labels = made()
    terms = functional.binary_cross_entropy_with_logits(logits, labels) + focal_loss(logits, labels, 2.0) + pair_loss(logits, labels)
    torch.testing.assert_close(hybrid_loss(logits, labels), terms)
    of_scores = terms - pair_loss(logits, labels) + score_pair_loss(logits, labels)
    torch.testing.assert_close(hybrid_loss(logits, labels, "scores"), of_scores)


@pytest.mark.parametrize("loss", [focal_loss, pair_loss, score_pair_loss, hybrid_loss], ids=lambda loss: loss.__name__)
def test_gradients(loss: object) -> None:
    logits, labels = made(3, 4)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_logits_give_finite_values_and_gradients(dtype: torch.dtype) -> None:
    labels = torch.tensor([[1.0, 0, 1, 0]])
    logits = torch.tensor([[1e4, 1e4, -1e4, -1e4]], dtype=dtype, requires_grad=True)
    for gamma in (0.5, 2.0):
        loss = focal_loss(logits, labels, gamma)
        assert float(loss) == pytest.approx(1e4, rel=1e-2), "two classes are wrong by 1e4"
        (gradient,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(gradient, torch.tensor([[0, 0.5, -0.5, 0]], dtype=dtype))
    pairs: tuple[Literal["probabilities", "scores"], ...] = ("probabilities", "scores")
    for pair in pairs:
        loss = hybrid_loss(logits, labels, pair)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.skipif(not GOLDEN.is_file(), reason="golden vectors not here")
def test_golden() -> None:
    golden = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN, allow_pickle=False).items()}
    logits = golden["probs"].double().logit()
    labels = golden["labels"].double()
    assert float(focal_loss(logits, labels)) == pytest.approx(float(golden["focal"]), rel=1e-6)
    images = torch.stack([pair_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(len(logits))])
    torch.testing.assert_close(images, golden["pair_per_image"].double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(pair_loss(logits, labels), images.mean())
