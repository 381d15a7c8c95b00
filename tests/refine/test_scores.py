"""Bringing scores to the image's size, and the background channel."""

from __future__ import annotations

import numpy as np
import pytest

from wsss_core.refine.scores import add_background, upsample


@pytest.mark.parametrize(("small", "large"), [((54, 80), (213, 320)), ((1, 1), (7, 9)), ((3, 5), (3, 50)), ((94, 125), (375, 500))])
def test_upsampling_equals_torchs(small: tuple[int, int], large: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    scores = np.random.default_rng(0).random((3, *small), dtype=np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], size=large, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(upsample(scores, large), expected.numpy(), atol=2e-5)


def test_scores_of_the_right_size_and_no_channel() -> None:
    scores = np.ones((2, 4, 5), np.float32)
    assert upsample(scores, (4, 5)) is scores
    assert upsample(scores[:0], (8, 9)).shape == (0, 8, 9)


def test_constant_background_wins_where_all_maps_are_below_it() -> None:
    cams = np.array([[[0.1, 0.3, 0.9]], [[0.2, 0.1, 0.95]]], np.float32)
    scores = add_background(cams, 0.25, 4.0)
    np.testing.assert_array_equal(scores.argmax(axis=0), [[0, 1, 2]])
    np.testing.assert_allclose(scores.sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(scores[0, 0, 0], 0.25 / 0.55, rtol=1e-6)


def test_otsu_finds_the_gap_of_each_image() -> None:
    rng = np.random.default_rng(0)
    for low, high in ((0.1, 0.5), (0.5, 0.9)):
        is_object = rng.random((1, 40, 50)) < 0.3
        cams = (np.where(is_object, high, low) + rng.normal(0, 0.03, is_object.shape)).astype(np.float32)
        assert (add_background(cams, "otsu", 4.0).argmax(axis=0) == is_object[0]).mean() > 0.99


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_otsu_of_flat_maps_is_finite(value: float) -> None:
    scores = add_background(np.full((2, 3, 4), value, np.float32), "otsu", 4.0)
    assert np.isfinite(scores).all() and (scores.argmax(axis=0) == (1 if value == 1 else 0)).all()


def test_background_of_a_power() -> None:
    cams = np.array([[[0.0, 0.5, 1.0]]], np.float32)
    np.testing.assert_allclose(add_background(cams, None, 2.0)[0, 0], [1, 0.25 / 0.75, 0], atol=1e-6)
