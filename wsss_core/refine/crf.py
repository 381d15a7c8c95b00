"""Dense conditional random fields: named parameter sets and the two ways published code feeds them, soft scores or hard labels.

The mean-field inference itself is pydensecrf's. Its cost is linear in the number of labels, so only the labels that occur are passed to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydensecrf.densecrf import DenseCRF2D

SMALLEST_PROBABILITY = 1e-5
"""Scores below it count as this much (pydensecrf's `unary_from_softmax` has the same value), so that every logarithm is finite."""


@dataclass(frozen=True)
class CrfParameters:
    """Parameters of a dense CRF. Distances are in pixels, colour differences in steps of 0..255.

    Attributes
    ----------
    iterations
        Mean-field steps.
    gaussian_sxy, gaussian_compat
        Standard deviation and weight of the smoothness kernel exp(-|p_i - p_j|^2 / 2 sxy^2).
    bilateral_sxy, bilateral_srgb, bilateral_compat
        Standard deviations and weight of the appearance kernel exp(-|p_i - p_j|^2 / 2 sxy^2 - |I_i - I_j|^2 / 2 srgb^2).
    certainty
        `crf_soft` only: the unary is that of certainty * scores + (1 - certainty) / C.
    gt_prob
        `crf_labels` only: probability in (0, 1) that a given label is right; the other labels share the rest.
    """

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float
    iterations: int = 10
    certainty: float = 1.0
    gt_prob: float = 0.7


CRF_PRESETS: dict[str, CrfParameters] = {
    # PSA (Ahn & Kwak, CVPR 2018) and SEAM (Wang et al., CVPR 2020), `crf_inference`; the usual set for a segmenter's probabilities.
    "soft": CrfParameters(3, 3, 80, 13, 10),
    # IRN (Ahn et al., CVPR 2019), `crf_inference_label`; so Puzzle-CAM and ISIM.
    "labels": CrfParameters(3, 3, 50, 5, 10),
    # MuSCLe, final masks: 64/3 pixels; scores mixed half with the uniform distribution.
    "muscle": CrfParameters(2, 1, 64 / 3, 10, 10, iterations=4, certainty=0.5),
    # ViT-PCM, and with it APC, final masks.
    "vitpcm": CrfParameters(1, 3, 67, 3, 4),
}
"""The parameter sets of published code, by name."""


def crf_soft(image: np.ndarray, probs: np.ndarray, params: CrfParameters | str = "soft") -> np.ndarray:
    """Refine class scores with a dense CRF (Krähenbühl & Koltun, NIPS 2011, arXiv:1210.5644).

    The unary is -log of the scores, so a factor common to all channels of a pixel changes nothing. Channels that are zero
    everywhere are no labels: they are left out and come back as zeros.

    Parameters
    ----------
    image
        uint8[H, W, 3]; may be read-only.
    probs
        float[C, H, W] in [0, 1], background among the channels; may be read-only.
    params
        Parameters, or the name of a set in `CRF_PRESETS`.

    Returns
    -------
    float32[C, H, W]: marginal probabilities that sum to 1 at every pixel. With one label alone, `probs` as they are.

    Raises
    ------
    ValueError
        For shapes that do not fit, an image that is not uint8, scores that are not finite, or an unknown set.
    """
    params = find_parameters(params)
    probs = np.asarray(probs)
    if probs.ndim != 3 or not probs.size:
        raise ValueError(f"expected scores [C, H, W], got shape {probs.shape}")
    _check_image(image, probs.shape[1:])
    if not np.isfinite(probs).all():
        raise ValueError("expected finite scores, got NaN or infinity")
    present = np.flatnonzero(probs.reshape(len(probs), -1).max(axis=1) > 0)
    if len(present) <= 1:
        return probs.astype(np.float32)
    marginals = np.zeros(probs.shape, np.float32)
    marginals[present] = ImageCrf(image, len(present), params).marginals(score_energy(probs[present], len(probs), params.certainty))
    return marginals


def crf_labels(image: np.ndarray, labels: np.ndarray, num_labels: int, params: CrfParameters | str = "labels") -> np.ndarray:
    """Refine a label map with a dense CRF (Krähenbühl & Koltun, NIPS 2011), as IRN does.

    The unary of the given label is -log(gt_prob), that of each other label -log((1 - gt_prob) / (num_labels - 1)). Labels
    that occur nowhere in `labels` are left out: nothing speaks for them at any pixel.

    Parameters
    ----------
    image
        uint8[H, W, 3]; may be read-only.
    labels
        int[H, W] in [0, num_labels - 1]; may be read-only.
    num_labels
        Labels the map could have held. IRN counts the image's labels and background, not all classes of the data set; the
        larger the number, the more the unary trusts `labels`.
    params
        Parameters, or the name of a set in `CRF_PRESETS`.

    Returns
    -------
    int64[H, W]: the most probable label of each pixel. With one label alone, `labels` as they are.

    Raises
    ------
    ValueError
        For shapes that do not fit, an image that is not uint8, labels out of range, or an unknown set.
    """
    params = find_parameters(params)
    labels = np.asarray(labels)
    if labels.ndim != 2 or not labels.size or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected integer labels [H, W], got {labels.dtype} of shape {labels.shape}")
    _check_image(image, labels.shape)
    if labels.min() < 0 or labels.max() >= num_labels:
        raise ValueError(f"expected labels in 0..{num_labels - 1}, got {labels.min()}..{labels.max()}")
    present = np.unique(labels)
    if len(present) == 1:
        return labels.astype(np.int64)
    energy = label_energy(labels, present, num_labels, params.gt_prob)
    return present.astype(np.int64)[ImageCrf(image, len(present), params).marginals(energy).argmax(axis=0)]


class ImageCrf:
    """A dense CRF of one image, for one or several unary energies: the pairwise terms, a good part of the cost, are made once.

    Parameters
    ----------
    image
        uint8[H, W, 3]; may be read-only.
    num_labels
        C >= 2, the number of labels of every energy.
    params
        Parameters, or the name of a set in `CRF_PRESETS`.
    """

    def __init__(self, image: np.ndarray, num_labels: int, params: CrfParameters | str) -> None:
        self._params = params = find_parameters(params)
        _check_image(image, image.shape[:2])
        height, width = image.shape[:2]
        self._shape = (num_labels, height, width)
        self._field = DenseCRF2D(width, height, num_labels)
        self._field.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_compat)
        # pydensecrf takes writable, contiguous arrays only; images decoded by PIL are read-only.
        pixels = np.array(image, order="C")
        self._field.addPairwiseBilateral(sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, rgbim=pixels, compat=params.bilateral_compat)

    def marginals(self, energy: np.ndarray) -> np.ndarray:
        """Return the mean-field marginals float32[C, H, W] for unary energies float[C, H, W]; calls do not influence each other."""
        if energy.shape != self._shape:
            raise ValueError(f"expected energies of shape {self._shape}, got {energy.shape}")
        self._field.setUnaryEnergy(np.array(energy.reshape(len(energy), -1), dtype=np.float32, order="C"))
        return np.array(self._field.inference(self._params.iterations), dtype=np.float32).reshape(self._shape)


def score_energy(probs: np.ndarray, num_labels: int, certainty: float) -> np.ndarray:
    """Return the unary energies float[C, H, W] of scores [C, H, W] mixed with 1 / num_labels, as `crf_soft` uses them."""
    return -np.log(np.clip(certainty * probs + (1 - certainty) / num_labels, SMALLEST_PROBABILITY, 1))


def label_energy(labels: np.ndarray, present: np.ndarray, num_labels: int, gt_prob: float) -> np.ndarray:
    """Return the unary energies float[C, H, W] of a label map [H, W] for the labels `present` [C], as `crf_labels` uses them."""
    is_given = labels == present[:, None, None]
    return np.where(is_given, -np.log(gt_prob), -np.log((1 - gt_prob) / (num_labels - 1)))


def find_parameters(params: CrfParameters | str) -> CrfParameters:
    """Return the set of that name, or the parameters as they are; raises ValueError for an unknown name."""
    if isinstance(params, CrfParameters):
        return params
    if params not in CRF_PRESETS:
        raise ValueError(f"unknown CRF parameter set {params!r}; valid: {', '.join(CRF_PRESETS)}")
    return CRF_PRESETS[params]


def _check_image(image: np.ndarray, size: tuple[int, ...]) -> None:
    if image.dtype != np.uint8 or image.shape != (*size, 3):
        raise ValueError(f"expected an image uint8[{size[0]}, {size[1]}, 3], got {image.dtype} of shape {image.shape}")
