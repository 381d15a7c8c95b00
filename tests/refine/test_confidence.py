"""Confident labels against the rules written out pixel by pixel, and the shared CRF against separate ones."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from skimage.filters import threshold_otsu

from wsss_core.refine.confidence import labels_by_otsu, labels_by_power, labels_by_threshold
from wsss_core.refine.crf import CRF_PRESETS, ImageCrf, crf_labels, crf_soft, label_energy

SIZE = (16, 21)
CLASSES = np.array([4, 17], np.int32)


def make_image(height: int, width: int) -> np.ndarray:
    """Three stripes of different colour, with some noise."""
    stripes = np.array([(200, 60, 40), (30, 90, 180), (60, 200, 70)])[np.arange(width) * 3 // width]
    noise = np.random.default_rng(1).integers(-8, 9, (height, width, 3))
    return (stripes + noise).astype(np.uint8)


def make_cams(count: int, height: int, width: int) -> np.ndarray:
    """The first map is high in the left stripe, the second in the right one; both noisy."""
    cams = 0.3 * np.random.default_rng(count).random((count, height, width))
    stripe = np.arange(width) * 3 // width
    for k in range(count):
        cams[k] += 0.5 * (stripe == 2 * k)
    return cams.astype(np.float32)


def combine(strict: np.ndarray, loose: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The rule, pixel by pixel."""
    labels = np.zeros(strict.shape, int)
    for place in np.ndindex(strict.shape):
        if strict[place]:
            labels[place] = classes[strict[place] - 1]
        elif loose[place]:
            labels[place] = 255
    return labels


def threshold_map(cams: np.ndarray, threshold: float) -> np.ndarray:
    labels = np.zeros(cams.shape[1:], int)
    for y, x in np.ndindex(labels.shape):
        best = max(range(len(cams)), key=lambda k: cams[k, y, x])
        if cams[best, y, x] > np.float32(threshold):
            labels[y, x] = best + 1
    return labels


def power_scores(cams: np.ndarray, power: float) -> np.ndarray:
    return np.concatenate([(1 - cams.max(axis=0, keepdims=True)) ** power, cams])


@pytest.mark.parametrize("count", [1, 2])
def test_thresholds_without_crf(count: int) -> None:
    cams, classes = make_cams(count, *SIZE), CLASSES[:count]
    labels = labels_by_threshold(make_image(*SIZE), cams, classes, 0.4, 0.2, None)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 255, *classes}
    np.testing.assert_array_equal(labels, combine(threshold_map(cams, 0.4), threshold_map(cams, 0.2), classes))


def test_a_map_at_the_threshold_is_background() -> None:
    cams = np.array([0.25, 0.5, 0.75], np.float32).reshape(1, 1, 3)
    labels = labels_by_threshold(make_image(1, 3), cams, CLASSES[:1], 0.5, 0.25, None)
    np.testing.assert_array_equal(labels, [[0, 255, 4]])


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("crf", ["labels", CRF_PRESETS["soft"]])
def test_thresholds_with_crf_are_those_of_two_crfs(count: int, crf: str) -> None:
    image, cams, classes = make_image(*SIZE), make_cams(count, *SIZE), CLASSES[:count]
    maps = [threshold_map(cams, threshold) for threshold in (0.4, 0.2)]
    assert all(len(np.unique(labels)) == count + 1 for labels in maps)
    refined = [crf_labels(image, labels, count + 1, crf) for labels in maps]
    labels = labels_by_threshold(image, cams, classes, 0.4, 0.2, crf)
    np.testing.assert_array_equal(labels, combine(*refined, classes))
    assert (labels != combine(*maps, classes)).any(), "the CRF should change something"


def test_labels_of_one_map_only_are_known_to_both() -> None:
    image, cams = make_image(*SIZE), make_cams(2, *SIZE)
    cams[1] *= 0.6  # never above the strict threshold
    strict, loose = (threshold_map(cams, threshold) for threshold in (0.5, 0.2))
    assert set(np.unique(strict)) == {0, 1} and set(np.unique(loose)) == {0, 1, 2}
    params = CRF_PRESETS["labels"]
    refined = [
        ImageCrf(image, 3, params).marginals(label_energy(labels, np.arange(3), 3, params.gt_prob)).argmax(axis=0)
        for labels in (strict, loose)
    ]
    np.testing.assert_array_equal(labels_by_threshold(image, cams, CLASSES, 0.5, 0.2, "labels"), combine(*refined, CLASSES))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("crf", ["soft", "muscle", None])
def test_powers(count: int, crf: str | None) -> None:
    image, cams, classes = make_image(*SIZE), make_cams(count, *SIZE), CLASSES[:count]
    maps = []
    for power in (1.0, 60.0):
        scores = power_scores(cams, power)
        scores /= scores.sum(axis=0)
        maps.append((crf_soft(image, scores, crf) if crf else scores).argmax(axis=0))
    labels = labels_by_power(image, cams, classes, 1.0, 60.0, crf)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) >= {255, *classes}
    np.testing.assert_array_equal(labels, combine(*maps, classes))


def test_a_strict_class_wins_over_loose_background() -> None:
    """Without a CRF the loose map never has background where the strict one has a class; the rule holds for any two maps."""
    from wsss_core.refine.confidence import _combine

    strict, loose = np.array([[0, 0, 1, 2]]), np.array([[0, 1, 0, 1]])
    np.testing.assert_array_equal(_combine(strict, loose, CLASSES), [[0, 255, 4, 17]])


@pytest.mark.parametrize("crf", ["soft", None])
def test_pixels_without_activation_are_background(crf: str | None) -> None:
    cams = np.zeros((1, *SIZE), np.float32)
    assert not labels_by_power(make_image(*SIZE), cams, CLASSES[:1], 4, 24, crf).any()
    assert not labels_by_threshold(make_image(*SIZE), cams, CLASSES[:1], 0.3, 0.05, crf).any()


def test_pixels_with_full_activation_are_foreground() -> None:
    cams = np.ones((1, *SIZE), np.float32)
    assert (labels_by_power(make_image(*SIZE), cams, CLASSES[1:], 4, 24, "soft") == 17).all()
    assert (labels_by_threshold(make_image(*SIZE), cams, CLASSES[1:], 0.3, 0.05, "labels") == 17).all()


def test_no_class_is_background() -> None:
    cams, classes = np.zeros((0, *SIZE), np.float32), np.zeros(0, np.int32)
    for labels in (
        labels_by_threshold(make_image(*SIZE), cams, classes, 0.3, 0.05, "labels"),
        labels_by_power(make_image(*SIZE), cams, classes, 4, 24, "soft"),
    ):
        assert labels.dtype == np.uint8 and labels.shape == SIZE and not labels.any()


@pytest.mark.parametrize("size", [(1, 9), (7, 1), (1, 1)])
def test_thin_images(size: tuple[int, int]) -> None:
    image, cams = make_image(*size), make_cams(2, *size)
    for labels in (labels_by_threshold(image, cams, CLASSES, 0.4, 0.2), labels_by_power(image, cams, CLASSES, 1, 6)):
        assert labels.shape == size and set(np.unique(labels)) <= {0, 4, 17, 255}


def test_wrong_input_is_refused() -> None:
    image, cams = make_image(*SIZE), make_cams(2, *SIZE)
    for thresholds in ((0.2, 0.4), (0.3, 0.3)):
        with pytest.raises(ValueError, match="foreground threshold above"):
            labels_by_threshold(image, cams, CLASSES, *thresholds)
    for powers in ((24, 4), (4, 4), (0, 4)):
        with pytest.raises(ValueError, match="low < high"):
            labels_by_power(image, cams, CLASSES, *powers)
    with pytest.raises(ValueError, match=r"expected maps \[1, H, W\]"):
        labels_by_threshold(image, cams, CLASSES[:1], 0.4, 0.2)
    with pytest.raises(ValueError, match="expected maps"):
        labels_by_power(image[:-1], cams, CLASSES, 4, 24)
    with pytest.raises(ValueError, match="valid: soft, labels"):
        labels_by_threshold(image, cams, CLASSES, 0.4, 0.2, "hard")


def test_workers_do_not_load_torch() -> None:
    subprocess.run([sys.executable, "-c", "import sys, wsss_core.refine.confidence; sys.exit('torch' in sys.modules)"], check=True)


@pytest.mark.parametrize(("count", "margin"), [(1, 0.2), (2, 0.2), (2, 0.1)])
def test_otsu_by_its_definition(count: int, margin: float) -> None:
    """Both thresholds written out, both soft CRFs with a field of their own."""
    image, cams, classes = make_image(*SIZE), make_cams(count, *SIZE), CLASSES[:count]
    o = threshold_otsu(cams.max(axis=0))
    parts = []
    for background in (o + margin * (1 - o), o - margin * o):
        scores = np.concatenate([np.full((1, *SIZE), background, np.float32), cams])
        parts.append(crf_soft(image, scores / scores.sum(axis=0), "vitpcm").argmax(axis=0))
    labels = labels_by_otsu(image, cams, classes, margin)
    np.testing.assert_array_equal(labels, combine(*parts, classes))
    assert {0, *classes} <= set(np.unique(labels))


def test_otsu_of_no_class_a_flat_map_and_a_wrong_margin() -> None:
    image = make_image(*SIZE)
    assert not labels_by_otsu(image, np.zeros((0, *SIZE), np.float32), CLASSES[:0], 0.2).any()
    flat = labels_by_otsu(image, np.full((1, *SIZE), 0.5, np.float32), CLASSES[:1], 0.2)
    assert len(np.unique(flat)) == 1
    for margin in (0.0, 1.0):
        with pytest.raises(ValueError, match="margin between 0 and 1"):
            labels_by_otsu(image, make_cams(1, *SIZE), CLASSES[:1], margin)
