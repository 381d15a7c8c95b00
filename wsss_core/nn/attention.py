"""Attention modules that spread class activation maps over similar cells."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.nn.precision import at_least_float32

Kernel = Literal["centred_cosine", "softmax_dot", "relu_cosine", "softmax_cosine"]

_EPS = 1e-5
_SHORTEST = 1e-3
"""Shorter feature vectors keep their length: the gradient of a direction is one over the length."""
_CENTRED = 0.1
"""And those that are shorter than this part of the features of their tile, once its mean is taken off."""


class RegionalSelfAttention(nn.Module):
    """Regional self-attention, RSA: each cell's map becomes the mean over the tile's cells, weighted by the likeness of their features.

    C*_p = sum_q f(Y_p, Y_q) C_q / sum_q f(Y_p, Y_q), without learned projections and without a residual.

    Parameters
    ----------
    kernel
        f. `centred_cosine`: max(0, cos) of the features less their mean over the tile. `softmax_dot`: exp(Y_p^T Y_q), as printed. `relu_cosine`:
        max(0, cos) of the features as they are. `softmax_cosine`: exp(cos / temperature) of them.
    temperature
        Of `softmax_cosine`, > 0; smaller: nearer to the most similar cells alone.

    Notes
    -----
    Source: Liu et al., PLoS ONE 18(11) e0288596, Eqs. 4 to 6. As printed, Eq. 4 has C_p inside the sum, which gives C_p
    back: the sum runs over C_q here. Eqs. 5 and 6 together are a softmax of Y^T Y; the ReLU "to mask irrelevant pixels" that the text adds
    would do nothing to it, for final features are not negative. Of 1,280 or 2,048 of them nearly every cell then reads one and the same cell,
    the one with the longest feature.

    Hence the default (ours): less the tile's mean, features point in opposite directions where they differ, and the ReLU masks. `relu_cosine`
    masks nothing on features that are not negative, and is close to the mean over the tile: see `kept_deviation`.

    A cell is like itself by 1 (`centred_cosine`): one whose feature is about the tile's mean, with no direction to compare, keeps its value. Shorter than
    `_CENTRED` of the tile's features is "about". Of `relu_cosine` a cell of zeros keeps its value. In float32 also under autocast.
    """

    def __init__(self, kernel: Kernel = "centred_cosine", temperature: float = 0.1) -> None:
        super().__init__()
        if kernel not in get_args(Kernel):
            raise ValueError(f"unknown kernel {kernel!r}; valid: {', '.join(get_args(Kernel))}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.kernel, self.temperature = kernel, temperature

    def forward(self, features: Tensor, maps: Tensor) -> Tensor:
        """Return refined maps [N, G, h, w] from features [N, D, h, w] and maps [N, G, h, w]; N counts tiles."""
        with torch.autocast(maps.device.type, enabled=False):
            weights = self.weights(at_least_float32(features).flatten(2))
            return (at_least_float32(maps).flatten(2) @ weights.transpose(1, 2)).view_as(maps)

    def weights(self, features: Tensor) -> Tensor:
        """Return f(Y_p, Y_q) / sum_q f(Y_p, Y_q), [N, cells p, cells q] of features [N, D, cells]."""
        if self.kernel == "softmax_dot":
            return (features.transpose(1, 2) @ features).softmax(dim=2)
        if self.kernel == "centred_cosine":
            return _rows_of_one(_centred_cosine(features).relu())
        unit = functional.normalize(features, dim=1, eps=_SHORTEST)
        cosine = unit.transpose(1, 2) @ unit
        if self.kernel == "softmax_cosine":
            return (cosine / self.temperature).softmax(dim=2)
        return _rows_of_one(cosine.relu() + _EPS * torch.eye(cosine.shape[1], device=cosine.device, dtype=cosine.dtype))


@torch.no_grad()
def kept_deviation(attended: Tensor, maps: Tensor) -> Tensor:
    """Return how much of the maps' spatial deviation an attention keeps: the sum of the standard deviations over the cells, after over before.

    Parameters
    ----------
    attended, maps
        [N, G, h, w].

    Returns
    -------
    Scalar >= 0, in float32 or more: 1 where nothing changes, 0 where each map becomes its mean, 1 for maps that are flat.
    """
    after, before = (at_least_float32(each).flatten(2).std(dim=2, correction=0).sum() for each in (attended, maps))
    return torch.where(before > 0, after / before, 1)


def _centred_cosine(features: Tensor) -> Tensor:
    """Return the cosines of features [N, D, cells] less their mean over the cells, with 1 on the diagonal."""
    centred = features - features.mean(dim=2, keepdim=True)
    typical = features.detach().square().sum(dim=1, keepdim=True).mean(dim=2, keepdim=True).sqrt()
    length = centred.square().sum(dim=1, keepdim=True).add(1e-30).sqrt()  # the root's gradient at 0 would be infinite
    unit = centred / length.clamp(min=_SHORTEST).maximum(_CENTRED * typical)
    same = torch.eye(unit.shape[2], device=unit.device, dtype=torch.bool)
    return (unit.transpose(1, 2) @ unit).masked_fill(same, 1)


def _rows_of_one(likeness: Tensor) -> Tensor:
    return likeness / likeness.sum(dim=2, keepdim=True)


class SpatialAttention(nn.Module):
    """Spatial attention, SAM: each cell's map becomes a mean over all cells, weighted by how much both maps say the same.

    M' = softmax(q^T k / temperature) g3(M), the softmax over the cells that are read from; q and k are g1(M) and g2(M), less their means over the
    cells, at length 1; g1, g2, g3 are learned linear projections.

    Parameters
    ----------
    channels
        G, the number of maps.
    temperature
        Of the softmax, > 0; smaller: nearer to the most similar cells alone. None: Eq. 2 as printed, softmax(g1(M)^T g2(M)) g3(M), without
        means, lengths or temperature.

    Notes
    -----
    Source: Yuan et al. (MuSCLe), Eq. 2, where q and k are g1(M) and g2(M) as they are. A classifier's maps are logits of size 5 to 50, most of
    them negative: their products leave the softmax with one cell, mostly the same for all, and M' is flat. Hence the means and lengths (ours; on
    photographs a flat M' tells object from background no better than chance, this one as well as M). The projections start as
    identities (ours): from random ones every cell would begin with the mean of the whole map. In float32 also under autocast.
    """

    def __init__(self, channels: int, temperature: float | None = 0.1) -> None:
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
            if self.temperature is not None:
                query, key = (functional.normalize(each - each.mean(dim=2, keepdim=True), dim=1, eps=_SHORTEST) for each in (query, key))
            query, key, value = (each.transpose(1, 2) for each in (query, key, value))
            attended = functional.scaled_dot_product_attention(query, key, value, scale=1 / (self.temperature or 1))
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
        self.attention = RegionalSelfAttention("relu_cosine")  # as published

    def forward(self, features: Tensor, maps: Tensor) -> Tensor:
        """Return attended maps [N, G, h, w] from features [N, D, h, w], which learn nothing from it, and maps [N, G, h, w]."""
        return self.attention(self.embed(features.detach()), maps)
