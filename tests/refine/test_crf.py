"""Dense CRF: against a brute-force mean field, against pydensecrf wired by hand, and at the edges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydensecrf.densecrf import DenseCRF2D
from pydensecrf.utils import unary_from_labels, unary_from_softmax

from wsss_core.refine.crf import CRF_PRESETS, CrfParameters, ImageCrf, crf_labels, crf_soft

GOLDEN = Path(__file__).parents[3] / "shared/golden"


def make_image(height: int, width: int, noise: int = 4) -> np.ndarray:
    """Two flat halves of different colour, with some noise."""
    halves = np.where(np.arange(width)[None, :, None] < width // 2, (200, 60, 40), (30, 90, 180))
    image = halves + np.random.default_rng(1).integers(-noise, noise + 1, (height, width, 3))
    return image.astype(np.uint8)


def make_probs(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noisy scores that prefer label 1 in the left half and the last label in the right half."""
    scores = np.random.default_rng(seed).random((count, height, width)) + 0.2
    scores[1, :, : width // 2] += 0.5
    scores[-1, :, width // 2 :] += 0.5
    return (scores / scores.sum(axis=0)).astype(np.float32)


def mean_field(image: np.ndarray, energy: np.ndarray, params: CrfParameters) -> np.ndarray:
    """Exact mean field with dense N x N kernels, symmetrically normalised as pydensecrf's are; float64[C, H, W]."""
    count, height, width = energy.shape
    position = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2).astype(np.float64)
    colour = image.reshape(-1, 3).astype(np.float64)
    kernels = []
    for features, weight in (
        (position / params.gaussian_sxy, params.gaussian_compat),
        (np.hstack([position / params.bilateral_sxy, colour / params.bilateral_srgb]), params.bilateral_compat),
    ):
        kernel = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(axis=-1))
        norm = 1 / np.sqrt(kernel.sum(axis=1))
        kernels.append(weight * norm[:, None] * kernel * norm[None])
    unary = -energy.reshape(count, -1).astype(np.float64)
    logits = unary
    for _ in range(params.iterations + 1):
        q = np.exp(logits - logits.max(axis=0))
        q /= q.sum(axis=0)
        logits = unary + sum(q @ kernel for kernel in kernels)
    return q.reshape(energy.shape)


def direct(image: np.ndarray, unary: np.ndarray, params: CrfParameters) -> np.ndarray:
    height, width = image.shape[:2]
    field = DenseCRF2D(width, height, len(unary))
    field.setUnaryEnergy(np.ascontiguousarray(unary))
    field.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_compat)
    field.addPairwiseBilateral(sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, rgbim=image.copy(), compat=params.bilateral_compat)
    return np.array(field.inference(params.iterations)).reshape(-1, height, width)


@pytest.mark.parametrize("preset", list(CRF_PRESETS))
def test_soft_agrees_with_brute_force(preset: str) -> None:
    image, probs, params = make_image(9, 12, noise=30), make_probs(3, 9, 12), CRF_PRESETS[preset]
    energy = -np.log(params.certainty * probs + (1 - params.certainty) / 3)
    # The permutohedral lattice approximates the kernels. Weak pairwise terms leave the marginals unsaturated and show their size;
    # at full weight a close pixel may tip over.
    weak = replace(params, gaussian_compat=0.1 * params.gaussian_compat, bilateral_compat=0.1 * params.bilateral_compat)
    expected, actual = mean_field(image, energy, weak), crf_soft(image, probs, weak)
    np.testing.assert_allclose(actual, expected, atol=0.05)
    assert np.abs(actual - expected).mean() < 0.005
    expected, actual = mean_field(image, energy, params), crf_soft(image, probs, preset)
    assert (actual.argmax(axis=0) == expected.argmax(axis=0)).mean() > 0.96
    np.testing.assert_allclose(actual.sum(axis=0), 1, atol=1e-5)


def test_soft_without_pairwise_terms_is_the_softmax_of_the_unary() -> None:
    probs = make_probs(3, 5, 7)
    params = replace(CRF_PRESETS["soft"], gaussian_compat=0.0, bilateral_compat=0.0)
    np.testing.assert_allclose(crf_soft(make_image(5, 7), probs, params), probs, atol=1e-6)


@pytest.mark.parametrize("preset", list(CRF_PRESETS))
def test_one_crf_serves_several_unaries(preset: str) -> None:
    """Bit by bit what a new CRF gives for each, in any order, and what pydensecrf wired by hand gives."""
    image, params = make_image(16, 20), CRF_PRESETS[preset]
    energies = [-np.log(make_probs(3, 16, 20, seed)) for seed in (0, 1, 0)]
    shared = ImageCrf(image, 3, preset)
    results = [shared.marginals(energy) for energy in energies]
    assert (results[0] != results[1]).any()
    for energy, result in zip(energies, results, strict=True):
        np.testing.assert_array_equal(result, ImageCrf(image, 3, params).marginals(energy))
        np.testing.assert_array_equal(result, direct(image, energy.reshape(3, -1), params))


def test_labels_agree_with_brute_force() -> None:
    image, params = make_image(9, 12), CRF_PRESETS["labels"]
    labels = make_probs(3, 9, 12).argmax(axis=0)
    expected = mean_field(image, unary_from_labels(labels, 3, 0.7, zero_unsure=False).reshape(3, 9, 12), params).argmax(axis=0)
    assert (crf_labels(image, labels, 3) == expected).mean() > 0.95


def test_labels_remove_specks_and_follow_edges() -> None:
    labels = np.zeros((20, 24), int)
    labels[:, 14:] = 1  # the colours change at column 12
    labels[5, 5] = labels[12, 18] = 2
    refined = crf_labels(make_image(20, 24), labels, 3)
    assert (refined == (np.arange(24) >= 12)).all()


@pytest.mark.parametrize("preset", list(CRF_PRESETS))
def test_soft_passes_present_labels_only(preset: str) -> None:
    image, params = make_image(16, 20), CRF_PRESETS[preset]
    probs = np.zeros((21, 16, 20), np.float32)
    probs[[0, 7, 20]] = make_probs(3, 16, 20)
    everything = direct(image, unary_from_softmax(probs, scale=params.certainty), params)
    refined = crf_soft(image, probs, params)
    # 18 absent labels that share half the unary of `muscle` change the marginals; the winners stay.
    assert (refined.argmax(axis=0) == everything.argmax(axis=0)).mean() > (0.97 if params.certainty < 1 else 0.999)
    assert not refined[[1, 2, 19]].any()


def test_labels_passes_present_labels_only() -> None:
    image = make_image(16, 20)
    labels = np.array([0, 7, 20])[make_probs(3, 16, 20).argmax(axis=0)]
    unary = unary_from_labels(labels, 21, 0.7, zero_unsure=False)
    everything = direct(image, unary, CRF_PRESETS["labels"]).argmax(axis=0)
    refined = crf_labels(image, labels, 21)
    assert set(np.unique(refined)) <= {0, 7, 20}
    assert (refined == everything).mean() > 0.97


def test_a_single_label_comes_back_as_it_is() -> None:
    image = make_image(6, 8)
    probs = np.full((1, 6, 8), 0.4, np.float32)
    np.testing.assert_array_equal(crf_soft(image, probs), probs)
    padded = np.concatenate([np.zeros_like(probs), probs])
    np.testing.assert_array_equal(crf_soft(image, padded, "muscle"), padded)
    for count in (1, 21):
        np.testing.assert_array_equal(crf_labels(image, np.zeros((6, 8), np.uint8), count), np.zeros((6, 8)))


@pytest.mark.parametrize("size", [(1, 9), (5, 1), (1, 1)])
@pytest.mark.parametrize("preset", list(CRF_PRESETS))
def test_thin_images(size: tuple[int, int], preset: str) -> None:
    probs = np.random.default_rng(0).dirichlet([1, 1], size).transpose(2, 0, 1)
    refined = crf_soft(make_image(*size), probs, preset)
    assert refined.shape == (2, *size) and np.isfinite(refined).all()
    assert crf_labels(make_image(*size), probs.argmax(axis=0), 2, preset).shape == size


def test_zeros_and_ones_give_finite_marginals() -> None:
    probs = np.zeros((2, 6, 8), np.float32)
    probs[0, :, :4] = probs[1, :, 4:] = 1
    refined = crf_soft(make_image(6, 8), probs)
    assert np.isfinite(refined).all() and (refined.argmax(axis=0) == probs.argmax(axis=0)).all()


def test_inputs_may_be_read_only_and_strided_and_are_not_changed() -> None:
    image, probs = make_image(8, 10), make_probs(3, 8, 10)
    labels = probs.argmax(axis=0)
    strided = np.asfortranarray(probs)[:, ::1]
    before = image.copy(), probs.copy()
    for array in (image, probs, labels, strided):
        array.setflags(write=False)
    np.testing.assert_array_equal(crf_soft(image, probs), crf_soft(image.copy(), strided))
    crf_labels(image[::-1], labels, 3)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(probs, before[1])


def test_wrong_input_is_refused() -> None:
    image, probs = make_image(8, 10), make_probs(3, 8, 10)
    with pytest.raises(ValueError, match=r"uint8\[8, 10, 3\]"):
        crf_soft(image[:, :-1], probs)
    with pytest.raises(ValueError, match="float64"):
        crf_soft(image / 255, probs)
    with pytest.raises(ValueError, match=r"\[C, H, W\]"):
        crf_soft(image, probs[0])
    with pytest.raises(ValueError, match="NaN"):
        crf_soft(image, np.where(probs > 0.4, np.nan, probs))
    with pytest.raises(ValueError, match="valid: soft, labels, muscle, vitpcm"):
        crf_soft(image, probs, "hard")
    with pytest.raises(ValueError, match=r"0\.\.1, got 0\.\.2"):
        crf_labels(image, probs.argmax(axis=0), 2)
    with pytest.raises(ValueError, match="integer labels"):
        crf_labels(image, probs[0], 2)
    with pytest.raises(ValueError, match=r"energies of shape \(2, 8, 10\)"):
        ImageCrf(image, 2, "soft").marginals(probs)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the original authors' vectors are not on this machine")
def test_golden_vectors() -> None:
    with np.load(GOLDEN / "crf_soft.npz", allow_pickle=False) as soft:
        np.testing.assert_allclose(crf_soft(soft["image"], soft["probs"], "soft"), soft["marginals"], atol=1e-5)
    with np.load(GOLDEN / "crf_from_labels.npz", allow_pickle=False) as labels:
        refined = crf_labels(labels["image"], labels["labels"], int(labels["labels"].max()) + 1, "labels")
        np.testing.assert_array_equal(refined, labels["refined"])
