"""Attention modules that spread class activation maps over similar cells."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPS = 1e-5
_SHORTEST = 1e-3
"""Shorter feature vectors keep their length: the gradient of a direction is one over the length."""


class RegionalSelfAttention(nn.Module):
    """Regional self-attention, RSA: each cell's map becomes the mean over the tile's cells, weighted by the likeness of their features.

    C*_p = sum_q f(Y_p, Y_q) C_q / sum_q f(Y_p, Y_q), without learned projections and without a residual.

    Parameters
    ----------
    kernel
        f. With cos(p, q) the cosine of the features: `relu_cosine` max(0, cos), `softmax_cosine` exp(cos / temperature).
    temperature
        Of `softmax_cosine`, > 0; smaller: nearer to the most similar cells alone.

    Notes
    -----
    Source: Liu et al., PLoS ONE 18(11) e0288596, Eqs. 4 to 6. As printed, Eq. 4 has C_p inside the sum, which gives C_p
    back: the sum runs over C_q here. Eq. 6, exp(Y_p^T Y_q) with a ReLU in it, overflows for features of 2048 channels: features
    are L2-normalised first, and the ReLU is on the cosine (ours). A cell is always like itself, so no row is empty as long as its
    features are not all zero; then it keeps its own value.
    """

    def __init__(self, kernel: Literal["relu_cosine", "softmax_cosine"] = "relu_cosine", temperature: float = 0.1) -> None:
        super().__init__()
        if kernel not in ("relu_cosine", "softmax_cosine"):
            raise ValueError(f"unknown kernel {kernel!r}; valid: relu_cosine, softmax_cosine")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.kernel, self.temperature = kernel, temperature

    def forward(self, features: Tensor, maps: Tensor) -> Tensor:
        """Return refined maps [N, G, h, w] from features [N, D, h, w] and maps [N, G, h, w]; N counts tiles."""
        unit = functional.normalize(features.flatten(2), dim=1, eps=_SHORTEST)
        cosine = unit.transpose(1, 2) @ unit  # [N, cells, cells], symmetric
        if self.kernel == "softmax_cosine":
            weights = (cosine / self.temperature).softmax(dim=2)
        else:
            likeness = cosine.relu()
            likeness = likeness + _EPS * torch.eye(likeness.shape[1], device=likeness.device, dtype=likeness.dtype)
            weights = likeness / likeness.sum(dim=2, keepdim=True)
        return (maps.flatten(2) @ weights.transpose(1, 2)).view_as(maps)
