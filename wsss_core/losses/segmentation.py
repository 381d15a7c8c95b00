"""Losses of semantic segmentation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

IGNORE = 255


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over all pixels that are not to be ignored; 0 if there is none.

    Parameters
    ----------
    logits
        float[N, C, h, w]; resized bilinearly to the labels' size.
    labels
        int64[N, H, W] in [0, C-1], or 255 for ignored pixels (padding among them).
    """
    logits = functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    total = functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)
