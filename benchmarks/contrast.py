"""Cross-image foreground contrast (RSA + CFC): all tiles of all images against each other."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import Forms, HotSpot, Setup
from wsss_core.losses.contrast import foreground_contrast

ALPHA, EPS = 0.25, 1e-5
LossAndGradient = tuple[Tensor, Tensor]


def looped_contrast(vectors: Tensor) -> LossAndGradient:
    """The equations as printed (Eqs. 11 to 14), with our means: one pair of images after the other."""
    vectors = vectors.detach().requires_grad_()
    images = vectors.view(4, len(vectors) // 4, -1).transpose(0, 1)
    terms = []
    for i, own in enumerate(images):
        for r, other in enumerate(images):
            if i == r:
                continue
            norms = own.norm(dim=1)[:, None] * other.norm(dim=1)
            cosine = own @ other.T / norms
            weight = torch.sigmoid(ALPHA * cosine.detach().sum())
            terms.append(-weight * torch.log(cosine.relu() + EPS).mean())
    loss = torch.stack(terms).mean()
    loss.backward()
    return loss.detach(), vectors.grad


def our_contrast(vectors: Tensor) -> LossAndGradient:
    vectors = vectors.detach().requires_grad_()
    loss = foreground_contrast(vectors, alpha=ALPHA, eps=EPS)
    loss.backward()
    return loss.detach(), vectors.grad


def relative_difference(expected: LossAndGradient, ours: LossAndGradient) -> float:
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, ours, strict=True))


def foreground(setup: Setup) -> Forms:
    """A batch of 16 images of VOC, MobileNetV2's 1,280 channels: 64 vectors of 20 x 1,280."""
    images, length = (3, 40) if setup.tiny else (16, 20 * 1280)
    vectors = torch.rand(4 * images, length, generator=torch.Generator().manual_seed(20))
    return Forms({"pairs": partial(looped_contrast, vectors)}, partial(our_contrast, vectors), relative_difference, tolerance=1e-4)


HOT_SPOTS = [
    HotSpot(
        "foreground-contrast",
        "RSA + CFC's contrast, forward + backward, 16 images",
        "one pair of images after the other",
        "one Gram matrix",
        target=5,
        best=9.4,
        agreement="greatest relative difference of loss and gradient",
        make=foreground,
    ),
]
