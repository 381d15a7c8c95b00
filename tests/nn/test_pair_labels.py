"""Labels of pairs against loops over pixels and against PSA's own vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_core.nn.neighbours import offset_list, pair_labels

GOLDEN = Path(__file__).parents[3] / "shared/golden"


def loops(labels: np.ndarray, radius: int) -> dict[str, np.ndarray]:
    offsets, (height, width) = offset_list(radius), labels.shape
    pairs = {kind: np.zeros((len(offsets), height, width), bool) for kind in ("bg", "fg", "neg")}
    for k, (dy, dx) in enumerate(offsets):
        for y in range(height):
            for x in range(width):
                if not (0 <= y + dy < height and 0 <= x + dx < width):
                    continue
                a, b = int(labels[y, x]), int(labels[y + dy, x + dx])
                if a != 255 and b != 255:
                    pairs["neg" if a != b else "fg" if a else "bg"][k, y, x] = True
    return pairs


def random_labels(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).choice(np.array([0, 0, 3, 20, 255], np.uint8), shape)


@pytest.mark.parametrize("size", [(7, 9), (1, 8), (8, 1), (2, 3), (1, 1)])
@pytest.mark.parametrize("radius", [2, 5])
def test_agrees_with_loops(size: tuple[int, int], radius: int) -> None:
    labels = random_labels(*size)
    actual, expected = pair_labels(labels, radius), loops(labels, radius)
    assert set(actual) == set(expected)
    for kind, mask in expected.items():
        assert actual[kind].dtype == torch.bool
        np.testing.assert_array_equal(actual[kind].numpy(), mask, err_msg=kind)


def test_leading_dimensions_are_kept() -> None:
    labels = random_labels(2, 3, 5, 6)
    batch = pair_labels(torch.from_numpy(labels), 3)
    for kind, masks in batch.items():
        assert masks.shape == (2, 3, len(offset_list(3)), 5, 6)
        for n in np.ndindex(2, 3):
            torch.testing.assert_close(masks[n], pair_labels(labels[n], 3)[kind])


def test_arrays_may_be_read_only_and_strided() -> None:
    labels = random_labels(6, 8)
    labels.setflags(write=False)
    flipped = pair_labels(labels[:, ::-1], 3)
    torch.testing.assert_close(flipped, pair_labels(labels[:, ::-1].copy(), 3))


def test_ignored_labels_make_no_pairs() -> None:
    assert not any(mask.any() for mask in pair_labels(torch.full((2, 5, 6), 255, dtype=torch.uint8), 4).values())


def test_other_input_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        pair_labels(torch.zeros(4, 4, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=r"\[\.\.\., H, W\]"):
        pair_labels(torch.zeros(4, dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="radius"):
        pair_labels(torch.zeros(4, 4, dtype=torch.uint8), 1)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the original authors' vectors are not on this machine")
def test_golden_vectors() -> None:
    with np.load(GOLDEN / "psa_pair_labels_r5.npz", allow_pickle=False) as golden:
        pairs = pair_labels(golden["labels"], 5)
        height, width = golden["labels"].shape
        for kind, name in (("bg", "bg_pos"), ("fg", "fg_pos"), ("neg", "neg")):
            published = pairs[kind][:, : height - 4, 4 : width - 4].flatten(1)
            np.testing.assert_array_equal(published.numpy(), golden[name], err_msg=kind)
