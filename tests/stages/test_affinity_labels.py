"""The `affinity-labels` stage: contents, where the thresholds come from, kill and resume, wrong input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from score_trees import Tree, odd_images

from wsss_core.config import AffinityLabels
from wsss_core.data.images import read_mask
from wsss_core.errors import UserError
from wsss_core.files import read_json
from wsss_core.refine.confidence import labels_by_otsu, labels_by_power, labels_by_threshold
from wsss_core.refine.scores import upsample
from wsss_core.stage import Stage
from wsss_core.stages import affinity_labels as labels_stage
from wsss_core.stages.affinity_labels import make_affinity_labels

FIXED = {"method": "thresholds", "foreground": 0.6, "background": 0.2}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, odd_images())


def stage_of(tree: Tree, output: str = "labels", threads: int = 1, *, parameters: dict[str, Any] | None = None, **inputs: str) -> Stage:
    values = AffinityLabels.model_validate(FIXED if parameters is None else parameters).model_dump(mode="json")
    return tree.stage("affinity-labels", values, output, threads, **inputs)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (FIXED, (labels_by_threshold, 0.6, 0.2, "labels")),
        ({**FIXED, "crf": "none"}, (labels_by_threshold, 0.6, 0.2, None)),
        ({**FIXED, "crf": "vitpcm"}, (labels_by_threshold, 0.6, 0.2, "vitpcm")),
        ({"method": "thresholds"}, (labels_by_threshold, 0.6, 0.4, "labels")),  # around 0.5
        ({"method": "thresholds", "margin": 0.5}, (labels_by_threshold, 0.75, 0.25, "labels")),
        ({"method": "thresholds", "foreground": 0.7, "margin": 0.6}, (labels_by_threshold, 0.7, 0.2, "labels")),
        ({"method": "thresholds", "background": 0.1, "crf": "none"}, (labels_by_threshold, 0.6, 0.1, None)),
        ({"method": "powers", "low": 1, "high": 8}, (labels_by_power, 1, 8, "soft")),
        ({"method": "powers", "low": 1, "high": 8, "crf": "none"}, (labels_by_power, 1, 8, None)),
    ],
)
def test_labels_are_those_of_each_image_alone(tree: Tree, parameters: dict[str, Any], expected: tuple[Any, ...]) -> None:
    automatic = {} if parameters["method"] == "powers" or set(FIXED) <= set(parameters) else {"threshold": tree.threshold(0.5)}
    stage = stage_of(tree, parameters=parameters, **automatic)
    make_affinity_labels(stage)
    function, strict, loose, crf = expected
    counts = np.zeros(3)
    for name, made in tree.made.items():
        labels = read_mask(stage.output / "labels" / f"{name}.png")
        cams = upsample(made.cams, made.image.shape[:2])
        by_hand = function(made.image, cams, np.array(made.classes), strict, loose, crf) if made.classes else 0
        np.testing.assert_array_equal(labels, np.broadcast_to(by_hand, made.image.shape[:2]))
        counts += [(labels == 0).sum(), ((labels > 0) & (labels < 255)).sum(), (labels == 255).sum()]
    summary = read_json(stage.output / "summary.json")
    shares = dict(zip(("background", "foreground", "unsure"), counts / counts.sum(), strict=True))
    assert summary["shares"] == pytest.approx(shares) and min(shares["background"], shares["foreground"]) > 0
    assert summary["method"] == parameters["method"] and summary["crf"] == (crf or "none")
    if function is labels_by_threshold:
        assert (summary["foreground"], summary["background"]) == pytest.approx((strict, loose))


@pytest.mark.parametrize(("parameters", "margin", "crf"), [({}, 0.2, "vitpcm"), ({"margin": 0.6, "crf": "none"}, 0.6, None)])
def test_by_default_each_image_has_its_own_thresholds(tree: Tree, parameters: dict[str, Any], margin: float, crf: str | None) -> None:
    stage = stage_of(tree, parameters=parameters)
    make_affinity_labels(stage)
    for name, made in tree.made.items():
        cams = upsample(made.cams, made.image.shape[:2]) if made.classes else np.zeros((0, *made.image.shape[:2]), np.float32)
        expected = labels_by_otsu(made.image, cams, np.array(made.classes), margin, crf)
        np.testing.assert_array_equal(read_mask(stage.output / "labels" / f"{name}.png"), expected)
    summary = read_json(stage.output / "summary.json")
    assert (summary["method"], summary["margin"], summary["crf"]) == ("otsu", margin, crf or "none")


def test_an_image_without_classes_is_surely_background(tree: Tree) -> None:
    make_affinity_labels(stage_of(tree))
    labels = read_mask(tree.root / "labels/labels/d.png")
    assert labels.shape == (41, 57) and not labels.any()


def test_stopped_and_started_again_gives_the_same_bytes(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    make_affinity_labels(stage_of(tree, "undisturbed"))
    written, save = [], labels_stage.save_mask

    def stop_at_fourth(path: Path, mask: np.ndarray) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        save(path, mask)

    stage = stage_of(tree)
    monkeypatch.setattr(labels_stage, "save_mask", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        make_affinity_labels(stage)
    kept = sorted(str(path.relative_to(stage.resume)) for path in stage.resume.rglob("*.png"))
    assert kept == ["labels/a.png", "labels/b.png", "labels/sub/c.png"]
    assert not (stage.output / "labels").exists()
    written.clear()
    monkeypatch.setattr(labels_stage, "save_mask", lambda path, mask: written.append(path) or save(path, mask))
    make_affinity_labels(stage)
    assert len(written) == 4 and not (stage.resume / "labels").exists()
    for file in ("summary.json", *(f"labels/{name}.png" for name in tree.made)):
        assert (stage.output / file).read_bytes() == (tree.root / "undisturbed" / file).read_bytes()


def test_processes_change_nothing(tree: Tree) -> None:
    for threads in (1, 2):
        make_affinity_labels(stage_of(tree, f"labels{threads}", threads))
    for file in ("summary.json", *(f"labels/{name}.png" for name in tree.made)):
        assert (tree.root / "labels1" / file).read_bytes() == (tree.root / "labels2" / file).read_bytes()


@pytest.mark.parametrize("parameters", [{"foreground": 0.15}, {"background": 0.7}])
def test_a_fixed_threshold_beyond_the_automatic_one_is_one_line(tree: Tree, parameters: dict[str, float]) -> None:
    with pytest.raises(
        UserError,
        match=r"refine\.labels\.foreground 0\.\d+ is not greater than refine\.labels\.background 0\.\d+ \(one of them is automatic",
    ):
        make_affinity_labels(stage_of(tree, parameters={"method": "thresholds", **parameters}, threshold=tree.threshold(0.5)))


def test_wrong_input_is_one_line(tree: Tree) -> None:
    with pytest.raises(UserError, match=r"inputs\.threshold: missing"):
        make_affinity_labels(stage_of(tree, parameters={"method": "thresholds"}))
    Image.new("RGB", (57, 40)).save(tree.image("d"))  # even without classes
    with pytest.raises(UserError, match=r"d\.png: the image is 57x40 pixels, its scores are for 57x41"):
        make_affinity_labels(stage_of(tree, "other"))
    tree.image("b").unlink()
    with pytest.raises(UserError, match=r"b\.png: no such image$"):
        make_affinity_labels(stage_of(tree))
    (tree.root / "cams" / "scores.h5").unlink()
    with pytest.raises(UserError, match="run the stage 'scores' first"):
        make_affinity_labels(stage_of(tree))
