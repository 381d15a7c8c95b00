"""Agreement of two sets of class activation maps of the same image."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def masked_l1(maps: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute difference of maps, of the classes in the image alone (Puzzle-CAM; RSA + CFC, Eq. 15).

    Parameters
    ----------
    maps
        [N, G, h, w].
    others
        [N, G, h', w'], resized (bilinear) to the grid of `maps` if theirs differs: tiles put together may have one cell more.
    labels
        [N, G], 1 where the class is in the image.

    Returns
    -------
    Scalar: the mean over all N G h w differences, those of absent classes being 0 (as in Puzzle-CAM's published code).
    """
    if others.shape[-2:] != maps.shape[-2:]:
        others = functional.interpolate(others, size=maps.shape[-2:], mode="bilinear", align_corners=False)
    return ((maps - others).abs() * labels[:, :, None, None]).mean()
