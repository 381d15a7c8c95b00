"""Losses of multi-label classification."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.nn.precision import at_least_float32


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


def probability_cross_entropy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Multi-label classification prediction error, MCE: mean binary cross-entropy over images and classes (APC, Eq. 3).

    Parameters
    ----------
    probabilities
        float[N, C] in [0, 1]; each logarithm counts at least as that of 1e-6 (ours).
    labels
        float[N, C], 1 where the class is in the image, background included.
    """
    with torch.autocast(probabilities.device.type, enabled=False):
        return functional.binary_cross_entropy(at_least_float32(probabilities).clamp(1e-6, 1 - 1e-6), labels.to(probabilities.dtype))


def hybrid_loss(logits: Tensor, labels: Tensor, pair: Literal["probabilities", "scores"] = "probabilities") -> Tensor:
    """Hybrid classification loss of MuSCLe (Eq. 7): binary cross-entropy + focal loss + pair loss.

    Parameters
    ----------
    logits
        float[N, C-1], one per foreground class.
    labels
        float[N, C-1], 1 where the class is in the image, else 0.
    pair
        What the pair loss compares: `pair_loss` of probabilities or `score_pair_loss` of scores.
    """
    pairs = pair_loss if pair == "probabilities" else score_pair_loss
    return multilabel_soft_margin(logits, labels) + focal_loss(logits, labels) + pairs(logits, labels)


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss: cross-entropy that counts the less the surer the right answer is; sum over classes, mean over images.

    With p_t the probability of what is true, sigmoid(logit) of a present class and 1 - sigmoid(logit) of an absent one, it is
    -(1 - p_t)^gamma log(p_t) / 2.

    Parameters
    ----------
    logits
        float[N, C-1].
    labels
        float[N, C-1], 1 where the class is in the image, else 0.
    gamma
        How much less; not negative, 0 is cross-entropy.

    Notes
    -----
    Source: Lin et al., ICCV 2017, Eq. 5, with alpha for present and 1 - alpha for absent classes. MuSCLe does not say which; as in its
    published code alpha is 1/2, and classes are summed, so that among 20 of them this term starts at 2.5 times the cross-entropy.
    """
    agreement = (2 * labels - 1) * at_least_float32(logits)
    surprise = functional.softplus(-agreement)  # -log(p_t)
    return 0.5 * (torch.exp(-gamma * functional.softplus(agreement)) * surprise).sum(dim=1).mean()  # log(1 - p_t) = -softplus


def pair_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-sum-exp pairwise loss of probabilities: present classes have to rank above absent ones; mean over images.

    With p the probabilities, y the labels and K classes it is log(1 + sum over j, k of exp((1 - y_k) p_k - y_j p_j) / K^2).

    Parameters
    ----------
    logits
        float[N, C-1]; p is their sigmoid.
    labels
        float[N, C-1], 1 where the class is in the image, else 0.

    Notes
    -----
    Source: Li et al., CVPR 2017 (LSEP), in the form of MuSCLe's published code. Li et al. sum over the pairs of an absent class k and a
    present class j alone, of scores. Here all K^2 pairs count, with 0 for the p_k of a present and the p_j of an absent class: so
    probabilities are compared with 0 besides, and those of an image without a pair, with none or all of the classes, are still drawn
    down or up. It is between log(1 + 1/e) and log(1 + e). The sum is the product of one over k and one over j: no pairs to go through.
    """
    probabilities = at_least_float32(logits).sigmoid()
    absent, present = (1 - labels) * probabilities, labels * probabilities
    return torch.log1p(absent.exp().mean(dim=1) * present.neg().exp().mean(dim=1)).mean()


def score_pair_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-sum-exp pairwise loss of scores, LSEP: present classes have to rank above absent ones; mean over images.

    With s the scores it is log(1 + sum over absent u and present v of exp(s_u - s_v)).

    Parameters
    ----------
    logits
        float[N, C-1], s.
    labels
        float[N, C-1], 1 where the class is in the image, else 0.

    Returns
    -------
    Scalar >= 0. An image with none or all of the classes has no pair: 0, with a gradient of 0.

    Notes
    -----
    Source: Li et al., CVPR 2017, Eq. 4, which MuSCLe cites for its pair loss. It is not bounded: the gradient of a pair that is ranked the wrong way does
    not vanish, as that of `pair_loss` does. The sum over pairs is the product of one over u and one over v; the logarithm is of the
    sums, so that no exp overflows.
    """
    scores = at_least_float32(logits)
    present = labels > 0
    lowest = torch.finfo(scores.dtype).min / 4  # the sum of two is finite: no NaN where there is no pair
    absent_sum, present_sum = (
        values.masked_fill(left_out, lowest).logsumexp(dim=1) for values, left_out in ((scores, present), (-scores, ~present))
    )
    return functional.softplus(absent_sum + present_sum).mean()
