"""Losses of multi-label classification."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def multilabel_soft_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy over images and classes.

    Parameters
    ----------
    logits
        float[N, C-1], one per foreground class.
    labels
        float[N, C-1], 1 where the class is in the image.
    """
    return functional.binary_cross_entropy_with_logits(logits, labels)
