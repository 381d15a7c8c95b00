"""Bringing scores to the image's size, and the background channel."""

from __future__ import annotations

import numpy as np
import pytest

from wsss_core.refine.scores import FLOOR, add_background, upsample


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


def test_zero_maps_count_as_the_floor_but_stay_below_the_background() -> None:
    cams = np.zeros((1, 1, 2), np.float32)
    np.testing.assert_allclose(add_background(cams, 0.4, 4.0)[1], FLOOR / (0.4 + FLOOR), rtol=1e-6)
    assert (add_background(cams, 0.01, 4.0).argmax(axis=0) == 0).all()


def test_background_of_a_power() -> None:
    cams = np.array([[[0.0, 0.5, 1.0]]], np.float32)
    np.testing.assert_allclose(add_background(cams, None, 2.0)[0, 0], [1, 0.25 / 0.75, 0], atol=1e-6)
