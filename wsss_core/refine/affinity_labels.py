"""Affinity labels: what a label map with ignored pixels says about pairs of neighbours. AffinityNet and the boundary network learn from them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.data.images import IGNORE
from wsss_core.nn.neighbours import offset_list


def pair_labels(labels: Tensor | np.ndarray, radius: int) -> dict[str, Tensor]:
    """Sort the pairs (p, p + offset_k) of neighbouring pixels into positive and negative ones by their labels.

    Parameters
    ----------
    labels
        uint8[..., H, W]: 0 is background, 255 is ignored.
    radius
        Pairs are closer than this, in pixels of `labels`; the offsets are those of `neighbour_offsets`.

    Returns
    -------
    dict of bool[..., K, H, W] on the device of `labels`, at the place of p: ``bg`` both pixels are background, ``fg`` both are of
    the same class, ``neg`` they differ. No pair is in two of them; a pair with an ignored end, or with one end outside the
    image, is in none.

    Raises
    ------
    ValueError
        For labels that are not uint8 or have no height and width, or a radius below 2.

    Notes
    -----
    Source: PSA (Ahn & Kwak, CVPR 2018), Sec. 3.2; IRN (Ahn, Cho & Kwak, CVPR 2019), Sec. 4.1. Their published code takes p from the
    rows 0..H-radius and the columns radius-1..W-radius only, whose neighbours all lie inside; here every pair counts that
    lies inside, so that the borders and images smaller than the radius teach something too.
    """
    if isinstance(labels, np.ndarray):
        labels = torch.from_numpy(np.array(labels, order="C"))
    if labels.dtype != torch.uint8 or labels.ndim < 2:
        raise ValueError(f"expected labels uint8[..., H, W], got {labels.dtype} of shape {tuple(labels.shape)}")
    height, width = labels.shape[-2:]
    reach = radius - 1
    # Outside the image all is ignored, which leaves out the pairs that end there.
    padded = functional.pad(labels, (reach, reach, 0, reach), value=IGNORE)
    there = torch.stack([padded[..., y : y + height, reach + x : reach + x + width] for y, x in offset_list(radius)], dim=-3)
    here = labels.unsqueeze(-3)
    equal, known, background = here == there, here != IGNORE, here == 0
    return {
        "bg": equal & background,
        "fg": equal & (known & ~background),
        "neg": ~equal & known & (there != IGNORE),
    }
