"""The label-free threshold: cases with a known answer, which images it looks at, wrong input."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from score_trees import Made, Tree, odd_images

from wsss_core.errors import UserError
from wsss_core.files import read_json
from wsss_core.refine import threshold as module
from wsss_core.refine.confidence import around, labels_by_threshold
from wsss_core.stages.threshold import choose_threshold, read_threshold


def drawn(number: int, inside: float, around: float, label: int = 1) -> Made:
    """A red square on green. Its map is `inside` in the square, `around` in a margin, else 0: right for around <= threshold < inside."""
    image = np.full((64, 80, 3), (40, 120, 60), np.uint8)
    cams = np.zeros((1, 64, 80), np.float32)
    left = 10 + number
    cams[0, 12:48, left - 2 : left + 34] = around
    cams[0, 14:46, left : left + 32] = inside
    image[14:46, left : left + 32] = (200, 40, 30)
    return Made(image, cams, (label,))


def chosen(tree: Tree) -> dict[str, Any]:
    stage = tree.stage("threshold", {})
    choose_threshold(stage)
    return read_json(stage.output / "threshold.json")


@pytest.mark.parametrize(("around", "inside", "expected"), [(0.375, 0.875, 0.38), (0.25, 0.75, 0.25), (0.0625, 0.375, 0.07)])
def test_the_threshold_is_where_the_scores_follow_the_drawn_shapes(tmp_path: Path, around: float, inside: float, expected: float) -> None:
    result = chosen(Tree(tmp_path, {str(i): drawn(i, inside, around, i % 2 + 1) for i in range(4)}))
    assert result["threshold"] == expected  # the lowest of many that agree equally well
    assert result["agreement"] == max(result["agreements"]) == pytest.approx(1, abs=0.02)
    best = [t for t, agreement in zip(result["thresholds"], result["agreements"], strict=True) if agreement == result["agreement"]]
    assert best == [t / 100 for t in range(1, 100) if around <= t / 100 < inside]
    assert result["images"] == 4


def test_images_vote_by_their_pixels(tmp_path: Path) -> None:
    """Three images are right from 0.25 to 0.75, one from 0.375 to 0.875: 0.38 suits all."""
    made = {str(i): drawn(i, 0.75, 0.25) for i in range(3)}
    assert chosen(Tree(tmp_path, {**made, "other": drawn(3, 0.875, 0.375)}))["threshold"] == 0.38


def test_images_without_classes_say_nothing(tmp_path: Path) -> None:
    made = drawn(0, 0.875, 0.375)
    empty = Made(made.image, np.zeros((0, 12, 15), np.float32), ())
    tree = Tree(tmp_path, {"empty": empty, "full": made})
    tree.image("empty").unlink()  # not even looked at
    result = chosen(tree)
    assert (result["threshold"], result["images"]) == (0.38, 1)
    result = chosen(Tree(tmp_path / "none", {"empty": empty}))  # nothing to cut: any threshold will do
    assert (result["threshold"], result["agreement"], result["images"]) == (0.5, None, 0)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (299, 299), (301, 300), (650, 300)])
def test_the_sample_is_spread_over_at_most_300_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, expected: int) -> None:
    small = Made(np.zeros((4, 4, 3), np.uint8), np.zeros((1, 1, 1), np.float32), (1,))
    tree, seen = Tree(tmp_path, {f"{i:03d}": small for i in range(count)}), []

    def look(function: Any, items: list[tuple[str, Path]], *rest: Any) -> list[np.ndarray]:
        seen.extend(int(name) for name, _ in items)
        return [np.ones((4, 3, 100), np.int64)]

    monkeypatch.setattr(module, "map_images", look)
    assert chosen(tree)["images"] == expected
    assert len(seen) == len(set(seen)) == expected
    assert (seen[0], seen[-1]) == (0, count - 1) and set(np.diff(seen)) <= {1, 2, 3}


def test_processes_and_repetitions_change_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path, odd_images())
    for name, threads in (("one", 1), ("two", 2), ("again", 1)):
        choose_threshold(tree.stage("threshold", {}, name, threads))
    results = [(tmp_path / name / "threshold.json").read_bytes() for name in ("one", "two", "again")]
    assert results[0] == results[1] == results[2]
    curve = json.loads(results[0])
    assert len(curve["agreements"]) == 99 and all(0 <= value <= 1 for value in curve["agreements"])


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    tree = Tree(tmp_path, {"0": drawn(0, 0.75, 0.25), "1": drawn(1, 0.75, 0.25)})
    Image.new("RGB", (80, 65)).save(tree.image("1"))
    with pytest.raises(UserError, match=r"1\.png: the image is 80x65 pixels, its scores are for 80x64"):
        chosen(tree)
    tree.image("1").unlink()
    with pytest.raises(UserError, match=r"1\.png: no such image$"):
        chosen(tree)
    (tmp_path / "cams" / "scores.h5").unlink()
    with pytest.raises(UserError, match="run the stage 'scores' first"):
        chosen(tree)


def test_what_was_chosen_is_read_again(tmp_path: Path) -> None:
    tree = Tree(tmp_path, {"0": drawn(0, 0.75, 0.25)})
    value = chosen(tree)["threshold"]
    assert read_threshold(tree.stage("pseudo", {}, threshold="threshold")) == value == 0.25
    with pytest.raises(UserError, match=r"inputs\.threshold: missing"):
        read_threshold(tree.stage("pseudo", {}))
    (tmp_path / "threshold" / "threshold.json").write_text("{}")
    with pytest.raises(UserError, match=r"threshold\.json: holds no threshold"):
        read_threshold(tree.stage("pseudo", {}, threshold="threshold"))
    (tmp_path / "threshold" / "threshold.json").unlink()
    with pytest.raises(UserError, match="run the stage 'threshold' first"):
        read_threshold(tree.stage("pseudo", {}, threshold="threshold"))


@pytest.mark.parametrize("margin", [0.01, 0.2, 0.99])
def test_confident_thresholds_lie_around_the_threshold(margin: float) -> None:
    image, cams = np.zeros((2, 2, 3), np.uint8), np.full((1, 2, 2), 0.5, np.float32)
    pairs = [around(step / 100, margin) for step in range(1, 100)]
    for step, (strict, loose) in enumerate(pairs, start=1):
        assert 0 < loose < step / 100 < strict < 1
        labels_by_threshold(image, cams, np.array([1]), strict, loose, None)  # raises nothing
    assert all(before < after for before, after in itertools.pairwise(pairs))  # both rise with the threshold
    np.testing.assert_allclose(around(0.6, margin), (0.6 + 0.4 * margin, 0.6 * (1 - margin)))
