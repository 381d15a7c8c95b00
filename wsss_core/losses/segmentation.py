"""Losses of semantic segmentation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from wsss_core.data.images import IGNORE


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


def foreground_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """ISIM's modified cross-entropy: images whose labels hold no foreground are left out of the mean; 0 if none is left.

    Source: Bircanoglu & Arica (ISIM), Eqs. 1 to 3. An image is what the network saw of it, the training crop; padding (255) is
    neither foreground nor background. As printed, Eq. 2 multiplies such an image's logits by 0, which adds the constant ln C to
    the loss of each of its pixels, and the published code does so; its gradient is none either way, but the mean would then
    weigh the other images less the more images are empty. Here, as the text has it, no loss is calculated for it.

    Parameters
    ----------
    logits
        float[N, C, h, w]; resized bilinearly to the labels' size.
    labels
        int64[N, H, W] in [0, C-1], or 255 for ignored pixels.
    """
    shows_object = ((labels > 0) & (labels != IGNORE)).flatten(1).any(dim=1)
    return pixel_cross_entropy(logits, labels.masked_fill(~shows_object[:, None, None], IGNORE))
