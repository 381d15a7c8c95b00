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


class SpatialAttention(nn.Module):
    """Spatial attention, SAM: each cell's map becomes a mean over all cells, weighted by how much both maps say the same.

    M' = softmax(q^T k / temperature) g3(M), the softmax over the cells that are read from; q and k are g1(M) and g2(M), less their means over the
    cells, at length 1; g1, g2, g3 are learned linear projections.

    Parameters
    ----------
    channels
        G, the number of maps.
    temperature
        Of the softmax, > 0; smaller: nearer to the most similar cells alone.

    Notes
    -----
    Source: Yuan et al. (MuSCLe), Eq. 2, where q and k are g1(M) and g2(M) as they are. A classifier's maps are logits of size 5 to 50, most of
    them negative: their products leave the softmax with one cell, mostly the same for all, and M' is flat. Hence the means and lengths (ours; on
    photographs a flat M' tells object from background no better than chance, this one as well as M). The projections start as
    identities (ours): from random ones every cell would begin with the mean of the whole map. In float32 also under autocast.
    """

    def __init__(self, channels: int, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature
        self.query, self.key = (nn.Conv2d(channels, channels, 1, bias=False) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        for projection in (self.query, self.key, self.value):
            nn.init.dirac_(projection.weight)
        nn.init.zeros_(self.value.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor, maps: Tensor) -> Tensor:
        """Return attended maps [N, G, h, w] of maps [N, G, h, w]; `features` are not used."""
        with torch.autocast(maps.device.type, enabled=False):
            query, key, value = (each(maps.float()).flatten(2) for each in (self.query, self.key, self.value))
            query, key = (functional.normalize(each - each.mean(dim=2, keepdim=True), dim=1, eps=_SHORTEST) for each in (query, key))
            query, key, value = (each.transpose(1, 2) for each in (query, key, value))
            attended = functional.scaled_dot_product_attention(query, key, value, scale=1 / self.temperature)
        return attended.transpose(1, 2).reshape(maps.shape)


class PixelCorrelation(nn.Module):
    """Pixel correlation, PCM (Wang et al., SEAM, CVPR 2020, Sec. 3.3): the mean over cells with like features, ReLU(cosine) weighted.

    Parameters
    ----------
    in_channels
        D, of the backbone's final features.
    width
        Channels of the space in which they are compared (192 in SEAM, whose published code also puts earlier levels and the image in).
    """

    def __init__(self, in_channels: int, width: int = 192) -> None:
        super().__init__()
        self.embed = nn.Conv2d(in_channels, width, 1, bias=False)
        self.attention = RegionalSelfAttention("relu_cosine")

    def forward(self, features: Tensor, maps: Tensor) -> Tensor:
        """Return attended maps [N, G, h, w] from features [N, D, h, w], which learn nothing from it, and maps [N, G, h, w]."""
        return self.attention(self.embed(features.detach()), maps)
