"""Contrast of images: all foregrounds of tiles against each other (RSA + CFC), and all images of a batch (MuSCLe)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import Forms, HotSpot, Setup
from wsss_core.losses.contrast import foreground_contrast, image_contrast

ALPHA, EPS = 0.25, 1e-5
TEMPERATURE = 0.1
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


def looped_image_contrast(embeddings: Tensor, labels: Tensor) -> LossAndGradient:
    """Eq. 1 one pair of images after the other, with our mean over anchors and our limit for those without a positive."""
    embeddings = embeddings.detach().requires_grad_()
    unit = functional.normalize(embeddings, dim=1)
    terms = []
    for i, own in enumerate(labels):
        positive, negative, negatives = torch.zeros(()), torch.zeros(()), 0
        for j, other in enumerate(labels):
            if i == j:
                continue
            if all(torch.eq(own, other)):
                positive = positive + torch.exp((unit[i] * unit[j]).sum() / TEMPERATURE)
            elif (own * other).sum() == 0:
                negative = negative + torch.exp((unit[i] * unit[j]).sum() / TEMPERATURE)
                negatives += 1
        if positive > 0:
            terms.append(-torch.log(positive / (positive + negative)))
        elif negatives > 0:
            terms.append(torch.log(negative / negatives))
    loss = torch.stack(terms).mean()
    loss.backward()
    return loss.detach(), embeddings.grad


def our_image_contrast(embeddings: Tensor, labels: Tensor) -> LossAndGradient:
    embeddings = embeddings.detach().requires_grad_()
    loss = image_contrast(embeddings, labels, TEMPERATURE)
    loss.backward()
    return loss.detach(), embeddings.grad


def images(setup: Setup) -> Forms:
    """A batch of 64 images of VOC, EfficientNet-b3's 1,536 channels; two in three images have one class, the others two or three."""
    count, length, classes = (8, 16, 4) if setup.tiny else (64, 1536, 20)
    generator = torch.Generator().manual_seed(30)
    embeddings = torch.rand(count, length, generator=generator)
    sizes = torch.tensor([1, 1, 1, 1, 2, 3]).repeat(-(-count // 6))[:count]
    order = torch.rand(count, classes, generator=generator).argsort(dim=1).argsort(dim=1)
    arguments = embeddings, (order < sizes[:, None]).float()
    return Forms(
        {"pairs": partial(looped_image_contrast, *arguments)}, partial(our_image_contrast, *arguments), relative_difference, tolerance=1e-4
    )


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
    HotSpot(
        "image-contrast",
        "MuSCLe's image contrast, forward + backward, 64 images",
        "one pair of images after the other",
        "one masked Gram matrix",
        target=100,
        best=306,
        agreement="greatest relative difference of loss and gradient",
        make=images,
    ),
]
