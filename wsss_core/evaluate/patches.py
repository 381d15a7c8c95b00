"""How far the embeddings of patches lie apart, between classes and within (APC, Table 9).

The paper names its metric and not how it is computed. Ours: a patch belongs to the class with the most pixels in it, by the true mask (to
none, if most are to be ignored); distances are 1 - cosine of all pairs of patches of all images; their mean for each pair of classes,
and for each class, background among them; the mean of these.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.evaluate.confusion import mean_of_defined


def patch_classes(truth: np.ndarray, size: tuple[int, int], num_classes: int) -> Tensor:
    """Return float64[C, h, w], 1 where most pixels of a patch are of that class, of a mask uint8[H, W] of class numbers and 255."""
    there = np.unique(truth)
    one_hot = torch.from_numpy(truth == there[:, None, None]).float()
    winner = torch.from_numpy(there)[functional.adaptive_avg_pool2d(one_hot, size).argmax(dim=0)]
    return (winner == torch.arange(num_classes)[:, None, None]).double()


def class_distances(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    """Return the mean distances between and within classes from sums of unit vectors float64[C, D] and their number [C].

    The mean cosine between two classes is the product of their mean vectors; within a class of n, (|sum|^2 - n) / (n (n - 1)). NaN where no
    pair of classes, or no class with two patches, is there.
    """
    present = counts > 0
    means = sums[present] / counts[present, None]
    between = 1 - means @ means.T
    pairs = torch.triu(torch.ones_like(between), diagonal=1) > 0
    several = counts > 1
    n = counts[several]
    within = 1 - (sums[several].square().sum(dim=1) - n) / (n * (n - 1))
    return mean_of_defined(between[pairs].numpy()), mean_of_defined(within.numpy())
