"""APC's two computations over patches: adaptive-K pooling and patch contrast."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.contrast import LossAndGradient, relative_difference
from benchmarks.harness import Forms, HotSpot, Setup
from wsss_core.losses.contrast import patch_contrast
from wsss_core.nn.pooling import adaptive_k_pool

K, THETA, EPSILON = 6, 0.9, 0.85


def looped_pooling(patch_scores: Tensor) -> LossAndGradient:
    """Algorithm 1 as printed: for each image and class ever more of the best patches."""
    patch_scores = patch_scores.detach().requires_grad_()
    pooled = []
    for image in patch_scores:
        for c in range(image.shape[1]):
            selected = image[:, c].topk(1).values
            for i in range(2, K + 1):
                current = image[:, c].topk(i).values
                if current.mean() / selected.mean() > THETA:
                    selected = current
            pooled.append(selected.mean())
    scores = torch.stack(pooled)
    scores.sum().backward()
    return scores.detach(), patch_scores.grad


def our_pooling(patch_scores: Tensor) -> LossAndGradient:
    patch_scores = patch_scores.detach().requires_grad_()
    scores, _ = adaptive_k_pool(patch_scores, K, THETA)
    scores.sum().backward()
    return scores.detach().flatten(), patch_scores.grad


def pairwise_contrast(embeddings: Tensor, scores: Tensor, labels: Tensor) -> LossAndGradient:
    """Eqs. 4 to 6 with the matrix of all pairs of patches, for each image and class."""
    embeddings = embeddings.detach().requires_grad_()
    total = torch.zeros(())
    for patches, probabilities, present in zip(embeddings, scores, labels, strict=True):
        for c in present.nonzero().flatten().tolist():
            high, low = patches[probabilities[:, c] > EPSILON], patches[probabilities[:, c] < 1 - EPSILON]
            n, m = len(high), len(low)
            if n > 1:
                alike = (1 + functional.cosine_similarity(high[:, None], high[None], dim=2)) / 2
                total = total + ((1 - alike).sum() - (1 - alike.diagonal()).sum()) / (n * (n - 1))
            if n and m:
                total = total + ((1 + functional.cosine_similarity(high[:, None], low[None], dim=2)) / 2).mean()
    loss = total / len(embeddings)
    loss.backward()
    return loss.detach(), embeddings.grad


def our_contrast(embeddings: Tensor, scores: Tensor, labels: Tensor) -> LossAndGradient:
    embeddings = embeddings.detach().requires_grad_()
    loss = patch_contrast(embeddings, scores, labels, EPSILON)
    loss.backward()
    return loss.detach(), embeddings.grad


def made_scores(images: int, patches: int, classes: int) -> Tensor:
    """Probabilities of patches, many of them sure."""
    generator = torch.Generator().manual_seed(40)
    return (6 * torch.randn(images, patches, classes, generator=generator)).softmax(dim=2)


def pooling(setup: Setup) -> Forms:
    """A batch of 16 images of 384 pixels, 576 patches, VOC's 21 classes."""
    scores = made_scores(*((2, 12, 3) if setup.tiny else (16, 576, 21)))
    return Forms({"loops": partial(looped_pooling, scores)}, partial(our_pooling, scores), relative_difference, tolerance=1e-5)


def contrast(setup: Setup) -> Forms:
    """The same batch, ViT-B's 768 dimensions, background and two more classes in each image."""
    images, patches, size, classes = (2, 12, 8, 4) if setup.tiny else (16, 576, 768, 21)
    generator = torch.Generator().manual_seed(41)
    embeddings = torch.randn(images, patches, size, generator=generator)
    labels = torch.zeros(images, classes)
    labels[:, :3] = 1
    given = embeddings, made_scores(images, patches, classes), labels
    return Forms({"pairs": partial(pairwise_contrast, *given)}, partial(our_contrast, *given), relative_difference, tolerance=1e-3)


HOT_SPOTS = [
    HotSpot(
        "adaptive-k",
        "APC's adaptive-K pooling, forward + backward, 16 images of 576 patches",
        "Algorithm 1's loops",
        "cumulative means",
        target=25,
        best=67,
        agreement="greatest relative difference of scores and gradient",
        make=pooling,
    ),
    HotSpot(
        "patch-contrast",
        "APC's patch contrast, forward + backward, 16 images of 576 patches",
        "the matrix of all pairs of patches",
        "sums of unit vectors",
        target=15,
        best=33,
        agreement="greatest relative difference of loss and gradient",
        make=contrast,
    ),
]
