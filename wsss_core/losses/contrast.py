"""Contrastive losses: what is alike is drawn together, what differs is pushed apart, for foregrounds, whole images and cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.losses.reconstruction import normalised_cams
from wsss_core.losses.regional import with_background
from wsss_core.nn.precision import at_least_float32
from wsss_core.nn.tiles import merge, split

PixelVectors = Literal["relu", "background", "centred"]

_LEAST_FOREGROUND = 0.05
"""A class that weighs less than this in the mean over a tile's cells is not in the tile: the direction of next to nothing has a huge gradient."""


def foreground_weights(maps: Tensor, kind: Literal["cam", "relu", "sigmoid"]) -> Tensor:
    """Return how much of each class is in each cell of the four tiles of images: what the maps of RSA + CFC's Eq. 10 weigh features with.

    Parameters
    ----------
    maps
        [4N, G, m, n], Ĉ*, tile-major (as `tiles.split` orders them).
    kind
        `relu`: the maps without what is below 0. `cam`: these, divided by the maximum over the image's four tiles and by 1 at least
        (`normalised_cams`). `sigmoid`: the class's probability.

    Returns
    -------
    float32[4N, G, m, n], not negative; `cam` and `sigmoid` at most 1.

    Notes
    -----
    Eq. 10 has Ĉ*, of which the paper's "final visual version" is ReLU'd: `relu` is nearest to it. (As it is, a map that crosses 0 gives a vector
    next to nothing.) Of `cam` and `relu` a class whose mean weight in a tile is below 0.05 is 0 in it (ours). Of `sigmoid` it is not: its gradient has no
    such places, but a tile without the object then has a foreground vector, too, that of its background.
    """
    if kind == "sigmoid":
        return at_least_float32(maps).sigmoid()
    weights = split(normalised_cams(merge(maps))) if kind == "cam" else at_least_float32(maps).relu()
    return torch.where(weights.mean(dim=(2, 3), keepdim=True) >= _LEAST_FOREGROUND, weights, 0)


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


def foreground_contrast(vectors: Tensor, *, alpha: float = 0.25, eps: float = 1e-5, pairs: Tensor | None = None) -> Tensor:
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
    pairs
        bool[b, b], symmetric, the pairs of images that count, such as `sharing_pairs`. None: all, as in Eq. 14.

    Returns
    -------
    Scalar >= -log(1 + eps); 0, with a gradient of 0, for a single image and where no pair counts.

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
    has_foreground = _has_direction(unit).to(unit.dtype)
    with torch.autocast(unit.device.type, enabled=False):  # like vectors differ by less than bfloat16's steps below 1
        cosine = unit @ unit.T
    known = has_foreground[:, None] * has_foreground

    def by_images(values: Tensor) -> Tensor:  # [4b, 4b] -> [b, b], the sum over the tiles of both
        return values.view(4, count, 4, count).sum(dim=(0, 2))

    tiles = by_images(known)
    weight = torch.sigmoid(alpha * by_images(cosine.detach() * known))
    mean_log = by_images(torch.log(cosine.relu() + eps) * known) / tiles.clamp(min=1)
    different = (1 - torch.eye(count, device=vectors.device)) * (tiles > 0)
    if pairs is not None:
        different = different * pairs
    return -(weight * mean_log * different).sum() / different.sum().clamp(min=1)


def image_contrast(embeddings: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Image level contrast, IMC: `image_contrast_terms` of all images of a batch, each an anchor (MuSCLe, Eq. 1).

    Positives have exactly the anchor's classes, negatives none of them; images that share some but not all are neither.

    Parameters
    ----------
    embeddings
        float[N, D]; their L2-normalised dot products are compared.
    labels
        [N, C-1], 1 where the class is in the image, else 0.
    temperature
        What dot products are divided by (1 in the paper, 0.1 in its published code).

    Returns
    -------
    Scalar: the mean over the anchors that have a positive or a negative; 0, with a gradient of 0, if there is none.

    Notes
    -----
    Source: Yuan et al. (MuSCLe), Section 3.2.1 and Appendix A. Decisions where the paper is silent (ours): the mean over anchors; an image
    without any class is left out, for two images that show nothing on the list need not be alike; so is one whose embedding is 0, which
    has no direction. One Gram matrix in float32 also under autocast, no loop over pairs. MuSCLe's published code goes through the pairs
    (i, j > i) alone, and drops anchors without a positive and those with no more negatives than positives.
    """
    return _contrast(image_contrast_terms, embeddings, labels, temperature)


def supervised_contrast(embeddings: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Supervised contrast (Khosla et al., NeurIPS 2020) as MuSCLe's Appendix A compares it with its own: `supervised_contrast_terms`.

    Parameters and result are those of `image_contrast`, and the same anchors count, of which those without a positive give 0.
    """
    return _contrast(supervised_contrast_terms, embeddings, labels, temperature)


def image_contrast_terms(similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """-log(P / (P + Q)) of every anchor, P and Q being the sums of exp(similarity) over its positives and negatives (MuSCLe, Eq. 1).

    Parameters
    ----------
    similarity
        float[..., M] to the anchor, divided by the temperature.
    positive, negative
        bool[..., M]; no image is both.

    Returns
    -------
    float[...]. Without a negative: 0. Without a positive Eq. 1 is -log(0); then it is (ours) the log of the mean of exp(similarity) over
    the negatives. It is finite, of either sign, and has the gradient that Appendix A states for this case (Eq. A.4), so that negatives
    are pushed apart nonetheless. Without either: 0, and where nothing has to change the gradient is 0.
    """
    log_p, log_q = _log_sum(similarity, positive), _log_sum(similarity, negative)
    count = negative.sum(dim=-1)
    alone = torch.where(count > 0, log_q - count.clamp(min=1).log(), 0)
    return torch.where(positive.any(dim=-1), functional.softplus(log_q - log_p), alone)


def supervised_contrast_terms(similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Sum over the positives j of -log(e_j / (e_j + Q)), e_j = exp(similarity), Q its sum over the negatives (MuSCLe, Eq. A.2).

    Parameters and shapes are those of `image_contrast_terms`. Without a positive, or without a negative: 0, with a gradient of 0. Khosla
    et al. divide by the number of positives, and have the other positives in the denominator as well.
    """
    penalty = functional.softplus(_log_sum(similarity, negative)[..., None] - similarity)
    return torch.where(positive, penalty, 0).sum(dim=-1)


def image_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return which pairs of different images have the same classes, and which have no class in common.

    Parameters
    ----------
    labels
        [N, C-1], 1 where the class is in the image, else 0.

    Returns
    -------
    positive, negative
        bool[N, N], symmetric. An image without any class is in no pair.
    """
    present = labels.float()
    with torch.autocast(labels.device.type, enabled=False):
        shared = present @ present.T
    count = present.sum(dim=1)
    other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    pairs = other & (count[:, None] > 0) & (count > 0)
    return pairs & (shared == count[:, None]) & (shared == count), pairs & (shared == 0)


def sharing_pairs(labels: Tensor) -> Tensor:
    """Return which images have a class in common, bool[N, N], of labels [N, C-1] (1 where the class is in the image).

    Source: none; RSA + CFC's Eq. 14 goes over all pairs. Of two images without a common class the foregrounds of the classes that they show are
    orthogonal: a constant without a gradient, by which the mean over the pairs that do pull is thinned out.
    """
    present = labels.float()
    with torch.autocast(labels.device.type, enabled=False):
        return present @ present.T > 0


def pixel_contrast(
    features: Tensor, targets: Tensor, valid: Tensor | None = None, *, vectors: PixelVectors = "relu", shortest: float = 0.0
) -> Tensor:
    """Pixel level contrast, PIXC: minus the mean cosine of corresponding cells (MuSCLe, Eq. 3).

    Parameters
    ----------
    features
        float[N, D, h, w], of one crop: class activation maps as they are, of either sign.
    targets
        float[N, D, h, w], of the other crop at the same places; they get no gradient.
    valid
        bool[N, h, w], the cells that both crops show. None: all.
    vectors
        What is compared in a cell. `relu`: the maps, of which negative values count as 0. `background`: D + 1 values in [0, 1], `with_background`
        (Eqs. 4, 5). `centred`: the maps less their means over the cells of the crop.
    shortest
        Vectors shorter than this are divided by it instead of by their length (logits; 0: none are). The gradient of a direction is one over the
        length: without a limit nearly all of the gradient comes from the few cells that are nearly 0.

    Returns
    -------
    Scalar in [-1, 1]: the mean over all valid cells of the batch; 0, with a gradient of 0, if there is none. A cell's gradient is no longer than
    1 / `shortest` over the number of valid cells (of `background`, whose vectors are never short, than 1 over it; of `centred`, through the means, than twice as much). Without `shortest` the
    cosine of a vector of 0 counts as 0 and has no gradient. In float32 also under autocast.

    Notes
    -----
    The paper does not say what of a map is compared. Of raw logits, nearly all negative, any two cells agree (a cosine of 0.99 before any
    training). What the maps show, `relu`, is nearest to the text, but has no gradient where a map of the first crop is not above 0, so that an
    object which that crop misses cannot be switched on; where both crops fire the same single class it is 1 and says nothing. The vectors of
    Eqs. 4 and 5, the paper's own for its next term, have a gradient in every cell. With a single class the cosine of `relu` has nothing to
    say, and that of `centred` no more than the sign.
    """
    unit, target = (_directions(value, vectors, shortest) for value in (features, targets.detach()))
    cosine = (unit * target).sum(dim=1)
    valid = torch.ones_like(cosine, dtype=torch.bool) if valid is None else valid
    counted = valid if shortest > 0 else valid & _has_direction(unit)
    return -torch.where(counted, cosine, 0).sum() / valid.sum().clamp(min=1)


def patch_contrast(embeddings: Tensor, scores: Tensor, labels: Tensor, epsilon: float = 0.85) -> Tensor:
    """Patch contrast, PCE: patches that surely show a class grow alike, and unlike those that surely do not (APC, Eqs. 4 to 6).

    For each class of the image, with S' = (1 + cosine) / 2: the mean of 1 - S' over the ordered pairs of different patches whose score of the
    class is above epsilon, plus the mean of S' over the pairs of one of these and one whose score is below 1 - epsilon.

    Parameters
    ----------
    embeddings
        float[N, S, D] of the patches.
    scores
        float[N, S, C], the patches' class probabilities; they choose the patches and get no gradient.
    labels
        float[N, C], 1 where the class is in the image, background included.
    epsilon
        Threshold, in [0.5, 1).

    Returns
    -------
    Scalar in [0, 2 C]: the sum over classes, mean over images (ours, as is that a term without pairs is 0). In float32 also under autocast.

    Notes
    -----
    No pair is ever formed: over unit vectors u the sum of the cosines of all ordered pairs is |sum u|^2 - sum |u|^2, and that between two
    sets is the scalar product of their sums. An embedding of 0 has a cosine of 0 with everything, and no gradient.
    """
    unit = functional.normalize(at_least_float32(embeddings), dim=2)
    unit = torch.where(_has_direction(unit.transpose(1, 2))[:, :, None], unit, 0)
    present = (labels > 0)[:, None]
    high, low = ((present & chosen).to(unit.dtype) for chosen in (scores > epsilon, scores < 1 - epsilon))
    with torch.autocast(unit.device.type, enabled=False):
        high_sum, low_sum = (chosen.transpose(1, 2) @ unit for chosen in (high, low))  # [N, C, D]
        own = high.transpose(1, 2) @ unit.square().sum(dim=2, keepdim=True)  # [N, C, 1]
    high_count, low_count = high.sum(dim=1), low.sum(dim=1)
    together, apart = high_count * (high_count - 1), high_count * low_count
    alike = (high_sum.square().sum(dim=2) - own[..., 0]) / together.clamp(min=1)
    unlike = (high_sum * low_sum).sum(dim=2) / apart.clamp(min=1)
    terms = torch.where(together > 0, (1 - alike) / 2, 0) + torch.where(apart > 0, (1 + unlike) / 2, 0)
    return terms.sum(dim=1).mean()


def _contrast(terms: Callable[[Tensor, Tensor, Tensor], Tensor], embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    unit = functional.normalize(at_least_float32(embeddings), dim=1)
    with torch.autocast(unit.device.type, enabled=False):
        similarity = unit @ unit.T / temperature
    directed = _has_direction(unit)
    positive, negative = (pairs & directed[:, None] & directed for pairs in image_pairs(labels))
    anchors = (positive | negative).any(dim=1).sum()
    return terms(similarity, positive, negative).sum() / anchors.clamp(min=1)


def _directions(maps: Tensor, vectors: PixelVectors, shortest: float) -> Tensor:
    """Return the vectors that `pixel_contrast` compares, of length 1 unless they are shorter than `shortest`."""
    maps = at_least_float32(maps)
    if vectors == "relu":
        compared = maps.relu()
    elif vectors == "background":
        compared = with_background(maps)
    else:
        compared = maps - maps.mean(dim=(2, 3), keepdim=True)
    return functional.normalize(compared, dim=1, eps=max(shortest, 1e-12))


def _has_direction(unit: Tensor) -> Tensor:
    """Return which normalised vectors [N, D, ...] have length 1 and not 0, as bool[N, ...]. The others' gradient would be immense."""
    return unit.detach().square().sum(dim=1) > 0.5


def _log_sum(similarity: Tensor, mask: Tensor) -> Tensor:
    """Log of the sum of exp(similarity) over the mask; the lowest finite number where that is empty: differences are no NaN."""
    return similarity.masked_fill(~mask, torch.finfo(similarity.dtype).min).logsumexp(dim=-1)
