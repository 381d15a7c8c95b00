"""From the class scores of patches to those of the image."""

from __future__ import annotations

import torch
from torch import Tensor


def adaptive_k_pool(patch_scores: Tensor, k: int, theta: float) -> tuple[Tensor, Tensor]:
    """Adaptive-K pooling: the mean of as many of a class's best patches as are nearly as good as the best (APC, Algorithm 1 and Eq. 2).

    The algorithm starts from the best patch and takes the i best instead as long as their mean is more than theta times that of the
    selection so far. Means of ever more of the best patches never grow: after the first failure all further ones fail too. So the selection is
    the initial run of ratios of neighbouring cumulative means that are above theta.

    Parameters
    ----------
    patch_scores
        float[N, S, C], not negative.
    k
        Most patches that count, K; with fewer patches all of them may.
    theta
        In [0, 1].

    Returns
    -------
    scores
        float[N, C].
    used
        int64[N, C], the number of patches in each mean, in 1..K.
    """
    means = _means_of_best(patch_scores, k)
    # Where the best are 0 the ratio is not a number, and the comparison false: one patch.
    goes_on = (means[:, 1:] / means[:, :-1]) > theta
    used = 1 + goes_on.long().cumprod(dim=1).sum(dim=1)
    return means.gather(1, used[:, None] - 1)[:, 0], used


def pool_patches(patch_scores: Tensor, pooling: str, k: int, theta: float) -> Tensor:
    """Return the image's scores float[N, C] of patch scores float[N, S, C] by `average`, `max`, `topk` (mean of the k best) or `adaptive`."""
    if pooling == "adaptive":
        return adaptive_k_pool(patch_scores, k, theta)[0]
    if pooling == "average":
        return patch_scores.mean(dim=1)
    return _means_of_best(patch_scores, k if pooling == "topk" else 1)[:, -1]


def _means_of_best(patch_scores: Tensor, k: int) -> Tensor:
    """Return the means of the 1, 2, ..., k best patches of each class, float[N, min(k, S), C]."""
    best = patch_scores.topk(min(k, patch_scores.shape[1]), dim=1).values
    return best.cumsum(dim=1) / torch.arange(1, best.shape[1] + 1, device=best.device, dtype=best.dtype)[:, None]
