"""Contrastive losses: foreground features of different images, drawn together where they are alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def foreground_vectors(features: Tensor, maps: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return f = Y^T C per tile, the features of each class's foreground (RSA + CFC, Eq. 10).

    Parameters
    ----------
    features
        [N, D, h, w].
    maps
        [N, G, h, w], how much of each class is in each cell; not negative.
    labels
        [N, G], 1 where the class is in the image: the others' part is 0 (ours; a map of an absent class is no foreground). None: all
        classes count, as printed.

    Returns
    -------
    float32[N, G * D], computed in float32 also under autocast: a sum over a tile overflows float16.
    """
    if labels is not None:
        maps = maps * labels[:, :, None, None]
    with torch.autocast(maps.device.type, enabled=False):
        return torch.einsum("ngp,ndp->ngd", maps.float().flatten(2), features.float().flatten(2)).flatten(1)


def foreground_contrast(vectors: Tensor, *, alpha: float = 0.25, eps: float = 1e-5) -> Tensor:
    """Cross-image foreground contrast, CFC: -mean over pairs of different images of W_ir times the mean of log S_ir.

    S_ir is the 4 x 4 matrix of cosines between the tiles of images i and r (Eq. 11), W_ir = sigmoid(alpha * sum S_ir) their rank
    weight (Eqs. 12, 13): pairs that look alike pull, others hardly do. There are no negatives.

    Parameters
    ----------
    vectors
        float[4b, F], the tiles' foreground vectors, tile-major (as `tiles.split` orders them).
    alpha
        Slope of the weight (0.25 in the paper).
    eps
        Added to the cosine inside the logarithm, where cosines below 0 count as 0 (and have no gradient).

    Returns
    -------
    Scalar >= -log(1 + eps); 0, with a gradient of 0, for a single image.

    Raises
    ------
    ValueError
        If the number of vectors is no multiple of 4.

    Notes
    -----
    Source: Liu et al., PLoS ONE 18(11) e0288596, Eqs. 11 to 14. Decisions where the paper is silent (ours): means instead of sums, so
    that the weight of the loss does not depend on the batch; eps, for the logarithm of a cosine of 0; W without gradient, for it
    ranks pairs and is not to be minimised; a tile without foreground (a vector of zeros) has no direction, and its pairs are
    left out of the means. One Gram matrix, no loop over pairs.
    """
    if len(vectors) % 4:
        raise ValueError(f"expected the vectors of 4 tiles per image, got {len(vectors)}")
    count = len(vectors) // 4
    unit = functional.normalize(vectors.float(), dim=1)
    has_foreground = (unit.detach().square().sum(dim=1) > 0.5).to(unit.dtype)
    with torch.autocast(unit.device.type, enabled=False):  # like vectors differ by less than bfloat16's steps below 1
        cosine = unit @ unit.T
    known = has_foreground[:, None] * has_foreground

    def by_images(values: Tensor) -> Tensor:  # [4b, 4b] -> [b, b], the sum over the tiles of both
        return values.view(4, count, 4, count).sum(dim=(0, 2))

    tiles = by_images(known)
    weight = torch.sigmoid(alpha * by_images(cosine.detach() * known))
    mean_log = by_images(torch.log(cosine.relu() + eps) * known) / tiles.clamp(min=1)
    different = (1 - torch.eye(count, device=vectors.device)) * (tiles > 0)
    return -(weight * mean_log * different).sum() / different.sum().clamp(min=1)
