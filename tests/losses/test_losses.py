"""Losses against loops."""

from __future__ import annotations

import math

import torch

from wsss_core.losses.classification import multilabel_soft_margin
from wsss_core.losses.segmentation import pixel_cross_entropy


def test_multilabel_soft_margin_is_the_mean_over_images_and_classes() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, dtype=torch.float64), torch.randint(0, 2, (3, 4)).double()
    total = 0.0
    for logit, label in zip(logits.flatten().tolist(), labels.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        total -= label * math.log(p) + (1 - label) * math.log(1 - p)
    assert math.isclose(multilabel_soft_margin(logits, labels).item(), total / 12)


def test_pixel_cross_entropy_leaves_out_ignored_pixels() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randint(0, 3, (2, 4, 5))
    labels[0, 0] = 255
    losses = [
        -logits[n, :, y, x].log_softmax(0)[labels[n, y, x]].item()
        for n in range(2)
        for y in range(4)
        for x in range(5)
        if labels[n, y, x] != 255
    ]
    assert math.isclose(pixel_cross_entropy(logits, labels).item(), sum(losses) / len(losses))


def test_pixel_cross_entropy_of_nothing_is_zero_and_has_a_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_cross_entropy(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
