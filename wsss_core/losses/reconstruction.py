"""Agreement of two sets of class activation maps of the same image."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from wsss_core.nn.precision import at_least_float32

_LOWEST_PEAK = 1.0
"""A map that nowhere reaches this logit (a probability of 0.73) keeps its height: the gradient of a normalised map is one over the height."""


def masked_l1(maps: Tensor, others: Tensor, labels: Tensor, level: Literal["logits", "cams"] = "logits") -> Tensor:
    """Mean absolute difference of maps, of the classes in the image alone (Puzzle-CAM; RSA + CFC, Eq. 15).

    Parameters
    ----------
    maps
        [N, G, h, w].
    others
        [N, G, h', w'], resized (bilinear) to the grid of `maps` if theirs differs: tiles put together may have one cell more.
    labels
        [N, G], 1 where the class is in the image.
    level
        What is compared: the `logits`, as Eq. 15 has it, or what is seen of them, `normalised_cams` of both.

    Returns
    -------
    Scalar: the mean over all N G h w differences, those of absent classes being 0 (as in Puzzle-CAM's published code).

    Notes
    -----
    Puzzle-CAM's published code has both, as `--level feature` and `--level cam`.
    """
    if others.shape[-2:] != maps.shape[-2:]:
        others = functional.interpolate(others, size=maps.shape[-2:], mode="bilinear", align_corners=False)
    if level == "cams":
        maps, others = normalised_cams(maps), normalised_cams(others)
    return ((maps - others).abs() * labels[:, :, None, None]).mean()


def normalised_cams(maps: Tensor) -> Tensor:
    """Return the maps [N, G, h, w] without what is below 0, divided by their maximum per image and class, in [0, 1] and at least float32.

    A maximum below 1, the logit, counts as 1 (ours; Puzzle-CAM's published code adds 1e-5): a map that shows next to nothing is not blown up, and
    neither is its gradient. Above it the result does not depend on the maps' scale; the maximum has its share of the gradient, as in that code.
    """
    shown = at_least_float32(maps).relu()
    return shown / shown.amax(dim=(2, 3), keepdim=True).clamp(min=_LOWEST_PEAK)
