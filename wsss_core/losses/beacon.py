"""BEACON: contrast of decoder features across object boundaries, the segmenter's second loss in MuSCLe (Yuan et al. 2023, Sec. 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.nn.precision import at_least_float32

_TAN_22_5 = math.sqrt(2) - 1
_MAPS_AT_ONCE = 4  # on a CPU a fifth of the time of all 20 of VOC, whose differences fit in no cache
_TIE = 1e-6  # cosines and their means closer to the threshold than this are equal to it: float32's rounding must not choose a sign


def beacon_loss(
    features: Tensor,
    segmentation: Tensor,
    soft_mask: Tensor,
    *,
    steps: int = 7,
    samples: int = 128,
    threshold: float | Literal["mean"] = "mean",
    sign: Literal["point", "pair"] = "point",
    ignore: Tensor | None = None,
    generator: torch.Generator | None = None,
    observe: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Draw features on both sides of a boundary apart where the pseudo mask differs there, and together where it does not.

    For the inward points I and the outward points O of an image (`boundary_points`), pixels of its segmentation map, with the cosines S^d
    of their features and S^m of their soft masks (Algorithm 1)::

        L = 1/|O| sum_o sign_o 1/|I| sum_i S^d_io  +  1/|I| sum_i sign_i 1/|O| sum_o S^d_io

    or, with a sign for each pair, L = 2/|I||O| sum_io sign_io S^d_io.

    Parameters
    ----------
    features
        float[N, D, h, w], the dense features of the decoder, of any stride.
    segmentation
        float[N, C, H, W], its logits at the size of the images, channel 0 background. They say where the boundaries are and get no gradient.
    soft_mask
        float[N, C, h', w'], not negative, the soft pseudo mask on a grid of its own. Only directions are compared: a cell of zeros, such as
        padding, knows nothing and changes nothing at the points beside it. No gradient either.
    steps
        How far the points lie from the boundary, in pixels of the images. The paper gives no unit for its 7; its published code enlarges
        features and logits to the size of the image first.
    samples
        Pairs of points per image, k: drawn at random without replacement; all of them if there are fewer.
    threshold
        Similarity tau of masks below which a point differs from those on the other side. "mean": the mean of the image's own S^m.
    sign
        "point": those of Algorithm 3. "pair": sign_io is that of tau - S^m_io.
    ignore
        bool[N, H, W], pixels where no point may lie, such as padding.
    generator
        Source of the draw. None: torch's global one.
    observe
        Told the share of the pairs pushed apart, those whose S^d has a positive weight in L, whose points have the same strongest channel in the
        soft mask: scalar in [0, 1], over all images; 0 if none is pushed.

    Returns
    -------
    Scalar in [-2, 2], the mean over the images that have points; 0, with a gradient of 0, if none has. float32 also under autocast.

    Notes
    -----
    Signs. With binary TP, FN, TN, FP in {-1, 1} and TN, FP negated (Algorithm 3), the sign is +1 in the cases TP and FN and -1 in TN and
    FP. TP and FN together are S^m < tau, whether S^d is below or above it, TN and FP are S^m > tau. So the sign is that of tau - S^m, with
    S^m averaged over the other side's points, and S^d has no part in it (except where S^d = tau exactly, which is in none of the cases).
    The weight of a pair is then sign_i + sign_o, whatever its own S^m_io is: where both sides' points lie mostly in background, pairs of an
    object's points are pushed apart, and those of object and background not. A sign for each pair (ours) has no such cases; it
    weighs as much, 2, as points that agree.

    Decisions where the paper is silent or undefined (ours):

    - Algorithm 1 prints log(sign), which -1 does not have. The sign itself multiplies the mean similarity: minimising suppresses it at a
      positive sign, as the text says, and raises it at a negative one.
    - S^m = tau is in none of the four cases either: sign 0, within 1e-6 (rounding). It happens to whole images with `threshold="mean"`:
      where the mask puts one thing inside and one outside, all means are equal, be it that all pairs differ or that none does.
    - f is the cosine, for features and masks; a vector of zeros has cosine 0 with all, and no gradient.
    - Points are drawn in pairs, one of either side of the same boundary point; only the inward side is behind the stop-gradient.
    - Features and soft masks are read at the points as if enlarged bilinearly to H x W (`at_pixels`), as in the published code. Only the
      logits really are: the features of a crop of 448 pixels would fill 16 times the memory, for 256 points.
    """
    losses = []
    pushed = wrong = torch.zeros((), dtype=torch.int64, device=features.device)
    for n, logits in enumerate(segmentation.detach()):
        probabilities = at_least_float32(logits).softmax(dim=0)
        inward, outward = boundary_points(probabilities, steps=steps, ignore=None if ignore is None else ignore[n])
        if len(inward) == 0:
            continue
        drawn = torch.randperm(len(inward), generator=generator, device=generator.device if generator else "cpu")[:samples]
        drawn = drawn.to(inward.device)
        points, size = (inward[drawn], outward[drawn]), segmentation.shape[-2:]
        similarity, weight = point_pairs(features[n], soft_mask[n], *points, size, threshold, sign)
        losses.append((weight * similarity).mean())
        if observe is not None:
            inside, outside = (at_pixels(soft_mask[n].detach(), side, size).argmax(dim=1) for side in points)
            pushed = pushed + (weight > 0).sum()
            wrong = wrong + ((weight > 0) & (inside[:, None] == outside)).sum()
    if observe is not None:
        observe(wrong / pushed.clamp(min=1))
    if not losses:
        return at_least_float32(features[:0]).sum()
    return torch.stack(losses).mean()


def point_pairs(
    features: Tensor,
    soft_mask: Tensor,
    inward: Tensor,
    outward: Tensor,
    size: Sequence[int],
    threshold: float | Literal["mean"],
    sign: Literal["point", "pair"],
) -> tuple[Tensor, Tensor]:
    """Return S^d and the weights of its pairs in the loss, both [k, k], inward points by outward ones: L is the mean of their product.

    Of one image: features [D, h, w], soft mask [C, h', w'], points int64[k, 2] among `size` pixels (H, W); the rest as for `beacon_loss`.
    """
    with torch.autocast(features.device.type, enabled=False):
        i_m, o_m = (_unit_vectors(soft_mask.detach(), points, size) for points in (inward, outward))
        i_d, o_d = _unit_vectors(features.detach(), inward, size), _unit_vectors(features, outward, size)
        s_m, s_d = i_m @ o_m.T, i_d @ o_d.T
        tau = s_m.mean() if threshold == "mean" else threshold
        if sign == "pair":
            return s_d, 2 * _signs(s_m, tau)
        return s_d, _signs(s_m.mean(dim=1, keepdim=True), tau) + _signs(s_m.mean(dim=0, keepdim=True), tau)


def at_pixels(maps: Tensor, points: Tensor, size: Sequence[int]) -> Tensor:
    """Return the vectors float[k, D] of maps [D, h, w] at pixels of an image, as if the maps were enlarged bilinearly to its size.

    Equal to ``functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0, :, y, x].T`` up to rounding, at the cost
    of k points. At least float32.

    Parameters
    ----------
    maps
        float[D, h, w].
    points
        int64[k, 2], (y, x), inside the image.
    size
        Of the image in pixels, (H, W).
    """
    maps = at_least_float32(maps)
    centres = (2 * points + 1).to(maps) / points.new_tensor(size) - 1  # of the pixels, the image from -1 to 1
    sampled = functional.grid_sample(maps[None], centres.flip(1)[None, None], mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T


def boundary_points(segmentation: Tensor, *, steps: int = 7, share: float = 0.2, ignore: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find points on both sides of the boundaries of one segmentation map (MuSCLe, Algorithm 2), without gradient.

    Boundary points p are the pixels with the largest Sobel gradients; q is the gradient's direction out of the object, one of the 8
    neighbours. The inward point is p - steps q, the outward one p + steps q.

    Parameters
    ----------
    segmentation
        float[C, H, W], class probabilities or a one-hot map, channel 0 background.
    steps
        How far both lie from p, in pixels; sqrt(2) times as far on diagonals.
    share
        Part of all pixels of the image, in (0, 1], that may be boundary points (0.2 in the paper).
    ignore
        bool[H, W], pixels where no point may lie. p itself may lie there: an ignored band may cover a boundary whose sides are known.

    Returns
    -------
    int64[P, 2] twice, (y, x) of inward and outward points, in pairs and in the order of p (rows, then columns). Pairs of which one
    falls off the image or on an ignored pixel are dropped.

    Raises
    ------
    ValueError
        If the map has no foreground channel, for fewer than 1 step, or for a share outside (0, 1].

    Notes
    -----
    Decisions where the paper is silent (ours). The gradient is taken of each foreground class's map, not of a map of class numbers, and
    the class with the largest one counts: so class numbers mean nothing and touching objects have a boundary. Of classes with the same
    gradient (touching objects in a one-hot map) the one with the larger probability at p counts, so that p is a point of that object;
    then the first one. A gradient of exactly 0 is no boundary, however few others there are. The limit is the gradient of rank
    round(share H W), and all pixels that reach it are in: ties do not depend on their place. The map is continued beyond the image by
    its border pixels, whose edge is no boundary. The 8 bins of 45 degrees are centred on the directions; on the edge of two, the vertical
    or horizontal one.
    """
    if len(segmentation) < 2:
        raise ValueError("expected a background and at least one foreground channel")
    if steps < 1 or not 0 < share <= 1:
        raise ValueError(f"expected steps >= 1 and a share in (0, 1], got {steps} and {share}")
    height, width = segmentation.shape[1:]
    with torch.no_grad():
        foreground = at_least_float32(segmentation[1:])
        dy, dx, squared = _sobel(foreground)
        largest = squared.amax(dim=0)
        limit = largest.flatten().topk(max(1, round(share * height * width)), sorted=False).values.min()
        points = ((largest >= limit) & (largest > 0)).nonzero()
        place = points[:, 0] * width + points[:, 1]
        squared, probability = (maps.flatten(1).index_select(1, place) for maps in (squared, foreground))
        owner = probability.masked_fill_(squared != squared.amax(dim=0), -1).max(dim=0).indices
        cell = owner * (height * width) + place
        out = -torch.stack([dy.take(cell), dx.take(cell)], dim=1)
        # a component vanishes within 22.5 degrees of the other axis
        q = (out.sign() * (out.abs() > _TAN_22_5 * out.abs().flip(1))).long()
        inward, outward = points - steps * q, points + steps * q
        size = points.new_tensor([height, width])
        kept = ((inward >= 0) & (inward < size) & (outward >= 0) & (outward < size)).all(dim=1)
        inward, outward = inward[kept], outward[kept]
        if ignore is not None:
            kept = ~(ignore[inward[:, 0], inward[:, 1]] | ignore[outward[:, 0], outward[:, 1]])
            inward, outward = inward[kept], outward[kept]
    return inward, outward


def _sobel(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Sobel's gradients dy, dx and their squared length, [F, H, W] each, of maps [F, H, W]. Differences come first, so that a flat map has 0."""
    dy, dx, squared = (torch.empty_like(maps) for _ in range(3))
    for part, y, x, both in zip(*(whole.split(_MAPS_AT_ONCE) for whole in (maps, dy, dx, squared)), strict=True):
        padded = functional.pad(part[None], (1, 1, 1, 1), mode="replicate")[0]
        down, right = padded[:, 2:] - padded[:, :-2], padded[:, :, 2:] - padded[:, :, :-2]
        torch.add(down[:, :, :-2], down[:, :, 2:], out=y).add_(down[:, :, 1:-1], alpha=2)
        torch.add(right[:, :-2], right[:, 2:], out=x).add_(right[:, 1:-1], alpha=2)
        torch.mul(y, y, out=both).addcmul_(x, x)
    return dy, dx, squared


def _unit_vectors(maps: Tensor, points: Tensor, size: Sequence[int]) -> Tensor:
    """Return `at_pixels` of length 1 or, without gradient, 0."""
    vectors = at_pixels(maps, points, size)
    return functional.normalize(vectors, dim=1) * vectors.any(dim=1, keepdim=True)


def _signs(similarity: Tensor, tau: Tensor | float) -> Tensor:
    margin = tau - similarity
    return margin.sign() * (margin.abs() > _TIE)
