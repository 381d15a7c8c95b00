"""Confident labels from class activation maps: sure foreground, sure background, the rest ignored. Affinity labels are made of them.

Two readings of the maps, a strict and a loose one, are refined by one dense CRF; where they disagree the label is 255.
"""

from __future__ import annotations

import numpy as np

from wsss_core.data.images import IGNORE
from wsss_core.refine.crf import CrfParameters, ImageCrf, find_parameters, label_energy, score_energy
from wsss_core.refine.scores import add_background, otsu_background


def labels_by_threshold(
    image: np.ndarray,
    cams: np.ndarray,
    classes: np.ndarray,
    foreground: float,
    background: float,
    crf: CrfParameters | str | None = "labels",
) -> np.ndarray:
    """Confident labels by two background thresholds, as IRN makes them (Ahn, Cho & Kwak, CVPR 2019, Sec. 4.1).

    A pixel's label is the class with the largest map, or background if none lies above the threshold; both label maps are
    refined as `crf_labels` does.

    Parameters
    ----------
    image
        uint8[H, W, 3].
    cams
        float32[K, H, W] in [0, 1].
    classes
        int[K], the class numbers of the maps, in 1..254.
    foreground, background
        The strict and the loose threshold: what is above `foreground` is foreground, what is not above `background` is background.
        IRN and its published code: 0.30 and 0.05; Puzzle-CAM 0.40 and 0.10; ISIM 0.30 and 0.10.
    crf
        Parameters of the CRF, or the name of a set in `CRF_PRESETS`; None leaves the CRF out.

    Returns
    -------
    uint8[H, W]: the class number where the strict map is foreground, 0 where both are background, else 255. Without classes
    all is background.

    Raises
    ------
    ValueError
        For thresholds out of order, shapes that do not fit, or an unknown set.

    Notes
    -----
    One CRF serves both maps, so it has the labels of both; for a map that lacks a label of the other, `crf_labels` would leave
    that label out. At no pixel does the map's unary speak for it, so this hardly matters.
    """
    if not foreground > background:
        raise ValueError(f"expected a foreground threshold above the background threshold, got {foreground} and {background}")
    _check(image, cams, classes)
    if not len(cams):
        return np.zeros(image.shape[:2], np.uint8)
    strict, loose = (np.concatenate([np.full_like(cams[:1], threshold), cams]).argmax(axis=0) for threshold in (foreground, background))
    if crf is not None:
        strict, loose = _refine_labels(image, (strict, loose), len(cams) + 1, find_parameters(crf))
    return _combine(strict, loose, classes)


def labels_by_otsu(
    image: np.ndarray, cams: np.ndarray, classes: np.ndarray, margin: float, crf: CrfParameters | str | None = "vitpcm"
) -> np.ndarray:
    """Confident labels on both sides of the image's own threshold (ours).

    With o the Otsu threshold of the image's strongest maps (`otsu_background`), the background scores o + margin (1 - o) in the
    strict map and (1 - margin) o in the loose one; both are refined as `crf_soft` does, which sees how far a pixel is from
    either, where thresholded labels tell it but the side.

    Parameters
    ----------
    image, cams, classes
        As in `labels_by_threshold`.
    margin
        In (0, 1). A wide one makes surer labels, but leaves a belt around the objects without any, where pairs across the
        border would be found.
    crf
        Parameters of the CRF, or the name of a set in `CRF_PRESETS`; None leaves the CRF out.

    Returns
    -------
    uint8[H, W]: as in `labels_by_threshold`.

    Raises
    ------
    ValueError
        For a margin out of range, shapes that do not fit, or an unknown set.
    """
    if not 0 < margin < 1:
        raise ValueError(f"expected a margin between 0 and 1, got {margin}")
    _check(image, cams, classes)
    if not len(cams):
        return np.zeros(image.shape[:2], np.uint8)
    scores = [add_background(cams, each, 1.0) for each in around(otsu_background(cams.max(axis=0)), margin)]
    return _by_scores(image, scores, classes, crf)


def around(threshold: float, margin: float) -> tuple[float, float]:
    """Return a strict and a loose threshold: `threshold` moved by a share of its distance from 1, and from 0."""
    return threshold + margin * (1 - threshold), (1 - margin) * threshold


def labels_by_power(
    image: np.ndarray, cams: np.ndarray, classes: np.ndarray, low: float, high: float, crf: CrfParameters | str | None = "soft"
) -> np.ndarray:
    """Confident labels by two powers of the background score, as PSA makes them (Ahn & Kwak, CVPR 2018, Sec. 3.2).

    The background's score is (1 - max over classes)^power, Eq. 2: a small power makes it strong, so what is foreground all the
    same is sure. Both score maps are refined as `crf_soft` does; a pixel's label is the channel with the largest marginal.

    Parameters
    ----------
    image, cams, classes
        As in `labels_by_threshold`.
    low, high
        The powers (PSA: 4 and 24, in its published code 4 and 32).
    crf
        Parameters of the CRF, or the name of a set in `CRF_PRESETS`; None leaves the CRF out.

    Returns
    -------
    uint8[H, W]: the class number where the map of the low power is foreground, 0 where both are background, else 255. Without
    classes all is background.

    Raises
    ------
    ValueError
        For powers out of order, shapes that do not fit, or an unknown set.

    Notes
    -----
    PSA's code writes background wherever the map of the high power has it, even where that of the low power has a class, which
    only the CRF can bring about; here, as in `labels_by_threshold`, the class stays. PSA's code also ignores pixels where all
    scores are below 1e-5. These are the margins of its padded crops, since marginals sum to 1 inside the image; here margins are
    the business of who crops, and a pixel without any activation is background.
    """
    if not 0 < low < high:
        raise ValueError(f"expected 0 < low < high, got {low} and {high}")
    _check(image, cams, classes)
    if not len(cams):
        return np.zeros(image.shape[:2], np.uint8)
    return _by_scores(image, [add_background(cams, None, power) for power in (low, high)], classes, crf)


def _by_scores(image: np.ndarray, scores: list[np.ndarray], classes: np.ndarray, crf: CrfParameters | str | None) -> np.ndarray:
    if crf is not None:
        scores = _refine_scores(image, scores, find_parameters(crf))
    strict, loose = (channels.argmax(axis=0) for channels in scores)
    return _combine(strict, loose, classes)


def _refine_labels(image: np.ndarray, maps: tuple[np.ndarray, ...], num_labels: int, params: CrfParameters) -> list[np.ndarray]:
    """`crf_labels` of several label maps int[H, W] of one image."""
    present = np.unique(np.stack(maps))
    if len(present) == 1:
        return list(maps)
    field = ImageCrf(image, len(present), params)
    energies = (label_energy(labels, present, num_labels, params.gt_prob) for labels in maps)
    return [present[field.marginals(energy).argmax(axis=0)] for energy in energies]


def _refine_scores(image: np.ndarray, maps: list[np.ndarray], params: CrfParameters) -> list[np.ndarray]:
    """`crf_soft` of several score maps float32[C, H, W] of one image."""
    present = np.flatnonzero(np.max([scores.max(axis=(1, 2)) for scores in maps], axis=0) > 0)
    if len(present) == 1:
        return maps
    field, refined = ImageCrf(image, len(present), params), [np.zeros_like(scores) for scores in maps]
    for scores, marginals in zip(maps, refined, strict=True):
        marginals[present] = field.marginals(score_energy(scores[present], len(scores), params.certainty))
    return refined


def _combine(strict: np.ndarray, loose: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return uint8[H, W] labels from two maps int[H, W] of channels, 0 being background."""
    numbers = np.concatenate([[0], classes]).astype(np.uint8)
    return np.where((strict == 0) & (loose != 0), np.uint8(IGNORE), numbers[strict])


def _check(image: np.ndarray, cams: np.ndarray, classes: np.ndarray) -> None:
    if image.dtype != np.uint8 or cams.shape != (len(classes), *image.shape[:2]):
        raise ValueError(
            f"expected maps [{len(classes)}, H, W] of an image uint8[H, W, 3], got {cams.shape} and {image.dtype} of shape {image.shape}"
        )
