"""Pixel-adaptive refinement: class scores spread to pixels nearby that look alike, without a CRF's lattice, for whole batches on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_DILATIONS = (1, 2, 4, 8, 12, 24)
_ITERATIONS = 10
_WIDTH = 0.3
"""Width of both kernels, in standard deviations over the neighbours (w1 and w2 of AFA)."""
_NEARNESS = 0.01
"""Weight of the position kernel (w3 of AFA)."""
_EPS = 1e-8


@torch.no_grad()
def pixel_adaptive_refine(images: Tensor, scores: Tensor, dilations: Sequence[int] = _DILATIONS, iterations: int = _ITERATIONS) -> Tensor:
    """Refine class scores by what the pixels look like (AFA: Ru et al., CVPR 2022, Sec. 3.4, after PAMR, Araslanov & Roth, CVPR 2020).

    Each pixel's score becomes a weighted mean of those of its eight neighbours at each dilation, `iterations` times. The weights are a
    softmax over the neighbours of -(|dI| / 0.3 sigma)^2, averaged over the colour channels, and 0.01 times one of -(distance / 0.3 sigma)^2; sigma
    is the standard deviation over the neighbours. Values of AFA's published code. The weights are divided by their sum, 1.01 there, so that scores stay
    probabilities (ours).

    Parameters
    ----------
    images
        float[N, 3, h, w]; a factor per channel changes nothing.
    scores
        float[N, C, h, w].
    dilations
        Distances of the neighbours, in pixels. Beyond the border lies the border's pixel.
    iterations
        Number of steps.

    Returns
    -------
    float[N, C, h, w].
    """
    shifts = [(dy * d, dx * d) for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    weights = _weights(images.float(), shifts)
    refined = scores.float()
    for _ in range(iterations):
        reach = max(dilations)
        padded = functional.pad(refined, [reach] * 4, mode="replicate")
        refined = torch.zeros_like(refined)
        for weight, shift in zip(weights, shifts, strict=True):
            refined.addcmul_(weight, _shifted(padded, shift, reach))
    return refined


def _weights(images: Tensor, shifts: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return the weight [N, 1, h, w] of each neighbour; at each pixel they sum to 1."""
    reach = max(max(map(abs, shift)) for shift in shifts)
    padded = functional.pad(images, [reach] * 4, mode="replicate")
    neighbours = torch.stack([_shifted(padded, shift, reach) for shift in shifts])
    width = _WIDTH * neighbours.std(dim=0, keepdim=True) + _EPS
    alike = (-(((neighbours - images) / width) ** 2)).mean(dim=2, keepdim=True).softmax(dim=0)
    distance = torch.tensor([(dy**2 + dx**2) ** 0.5 for dy, dx in shifts], device=images.device)
    near = (-((distance / (_WIDTH * distance.std() + _EPS)) ** 2)).softmax(dim=0)
    return list((alike + _NEARNESS * near.view(-1, 1, 1, 1, 1)) / (1 + _NEARNESS))


def _shifted(padded: Tensor, shift: tuple[int, int], reach: int) -> Tensor:
    """Return the view [N, C, h, w] of padded [N, C, h + 2 reach, w + 2 reach] that holds each pixel's neighbour."""
    (dy, dx), height, width = shift, padded.shape[2] - 2 * reach, padded.shape[3] - 2 * reach
    return padded[:, :, reach + dy : reach + dy + height, reach + dx : reach + dx + width]
