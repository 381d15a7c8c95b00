"""Cosine distances of patches: against loops over pairs, and which class a patch belongs to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.evaluate.patches import class_distances, patch_classes


def by_pairs(patches: Tensor, classes: list[int]) -> tuple[float, float]:
    """Mean distance of all pairs, for each pair of classes and each class; means of these."""
    cosine = functional.normalize(patches, dim=1) @ functional.normalize(patches, dim=1).T
    between: dict[tuple[int, int], list[float]] = {}
    within: dict[int, list[float]] = {}
    for i, one in enumerate(classes):
        for j, other in enumerate(classes[:i]):
            distance = 1 - float(cosine[i, j])
            if one == other:
                within.setdefault(one, []).append(distance)
            else:
                between.setdefault((min(one, other), max(one, other)), []).append(distance)
    return tuple(float(np.mean([np.mean(values) for values in each.values()])) for each in (between, within))  # type: ignore[return-value]


def test_distances_are_those_of_all_pairs() -> None:
    patches = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    classes = [0] * 14 + [2] * 9 + [3] * 6 + [4]  # one class alone, one (1) not there
    belongs = functional.one_hot(torch.tensor(classes), 5).double()
    sums = belongs.T @ functional.normalize(patches, dim=1)
    assert class_distances(sums, belongs.sum(dim=0)) == pytest.approx(by_pairs(patches, classes))


def test_without_pairs_there_is_no_figure() -> None:
    inter, intra = class_distances(torch.eye(3, 4, dtype=torch.float64)[:1], torch.ones(1, dtype=torch.float64))
    assert math.isnan(inter) and math.isnan(intra)


def test_a_patch_is_of_the_class_with_most_pixels() -> None:
    truth = np.zeros((6, 8), np.uint8)
    truth[:3, :4] = 2  # the whole patch
    truth[:2, 4:] = 1  # two thirds
    truth[3:, :3] = 255  # three quarters are to be ignored
    made = patch_classes(truth, (2, 2), 3)
    assert made.shape == (3, 2, 2)
    assert made.sum(dim=0).tolist() == [[1, 1], [0, 1]] and made.argmax(dim=0)[0].tolist() == [2, 1] and made[0, 1, 1] == 1
