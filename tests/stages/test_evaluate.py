"""The evaluate stage on a small made tree, against computing the same by hand."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from wsss_core.data.images import save_mask
from wsss_core.data.index import DataIndex, Record, write_index
from wsss_core.errors import UserError
from wsss_core.evaluate.confusion import confusion_matrix, segmentation_metrics
from wsss_core.evaluate.embeddings import read_embeddings
from wsss_core.refine.scores import upsample
from wsss_core.stage import Spec, Stage
from wsss_core.stages import evaluate as module
from wsss_core.stages.evaluate import evaluate
from wsss_core.store import ScoreWriter

CLASSES = ("background", "cat", "dog")
PROTOCOL = {"image_labels": True, "crf": "none", "scales": [1.0], "flip": False}
SIZES = {"a": (12, 16), "b": (9, 20), "sub/c": (1, 8)}


@pytest.fixture
def truths(tmp_path):
    rng = np.random.default_rng(0)
    masks = {}
    for name, size in SIZES.items():
        mask = rng.integers(0, 3, size).astype(np.uint8)
        mask[:, -1] = 255
        masks[name] = mask
        path = tmp_path / "data" / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_mask(path, mask)
    return masks


def write_data(tmp_path, with_masks=("a", "b", "sub/c")):
    def record(name):
        return Record(name, f"prepared:images/{name}.jpg", (1, 2), f"prepared:masks/{name}.png" if name in with_masks else None)

    index = DataIndex(CLASSES, {"train": tuple(map(record, SIZES))}, "made", None, tmp_path / "data")
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "index.json").write_text(json.dumps(write_index(index)))


def make_stage(tmp_path, subject, threads=1, **parameters) -> Stage:
    inputs = {"data": tmp_path / "data", "scores": tmp_path / "scores", "masks": tmp_path / "predictions"}
    parameters = {"subject": subject, "split": "train", "masks": "digest", "protocol": PROTOCOL, **parameters}
    output = tmp_path / "out"
    output.mkdir(exist_ok=True)
    return Stage(Spec("evaluate", "0123456789", 1, parameters, None, {}, inputs, {}, {}, output), threads, 0)


def read(tmp_path: Path, name: str = "figures.json"):
    return json.loads((tmp_path / "out" / name).read_text())


def write_scores(tmp_path, classes=(1, 2), seed=1):
    rng = np.random.default_rng(seed)
    stored = {}
    (tmp_path / "scores").mkdir(exist_ok=True)
    with ScoreWriter(tmp_path / "scores" / "scores.h5", 3) as writer:
        for name, size in SIZES.items():
            scores = rng.random((len(classes), -(-size[0] // 4), -(-size[1] // 4))).astype(np.float16)
            writer.add(name, scores, np.array(classes), size)
            stored[name] = upsample(scores.astype(np.float32), size)
    return stored


def expected(truths, label):
    return sum(confusion_matrix(mask, label(name), 3) for name, mask in truths.items())


def test_masks(tmp_path, truths):
    write_data(tmp_path)
    rng = np.random.default_rng(2)
    masks = {name: rng.integers(0, 3, size).astype(np.uint8) for name, size in SIZES.items()}
    for name, mask in masks.items():
        path = tmp_path / "predictions" / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_mask(path, mask)
    evaluate(make_stage(tmp_path, "segmenter"))
    result, metrics = read(tmp_path), segmentation_metrics(expected(truths, masks.__getitem__))
    assert {key: result[key] for key in ("subject", "split", "protocol", "images")} == {
        "subject": "segmenter",
        "split": "train",
        "protocol": PROTOCOL,
        "images": 3,
    }
    (figure,) = result["figures"]
    assert (figure["rule"], figure["threshold"]) == ("argmax", None)
    assert figure["miou"] == pytest.approx(metrics["miou"])
    assert figure["fnr"] == pytest.approx(dict(zip(CLASSES, metrics["fnr"], strict=True)))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "confusion.npy", allow_pickle=False), expected(truths, masks.__getitem__))
    assert (tmp_path / "out" / "per_class.csv").read_text().startswith("rule,threshold,class,iou,fdr,fnr\nargmax,,background,0.")


def test_threshold_of_pseudo_masks_is_passed_on(tmp_path, truths):
    write_data(tmp_path)
    for name, mask in truths.items():
        path = tmp_path / "predictions" / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_mask(path, np.where(mask == 255, 0, mask))
    evaluate(make_stage(tmp_path, "pseudo", protocol={**PROTOCOL, "threshold": 0.3}))
    (figure,) = read(tmp_path)["figures"]
    assert (figure["rule"], figure["threshold"], figure["miou"]) == ("fixed", 0.3, 1)


@pytest.mark.parametrize("fixed", [0.3, 1 / 3])
def test_scores_without_background(tmp_path, truths, fixed):
    write_data(tmp_path)
    scores = write_scores(tmp_path)
    evaluate(make_stage(tmp_path, "cams", thresholds=20, threshold=fixed))

    def label_at(t):
        return lambda name: np.where(scores[name].max(axis=0) > t, scores[name].argmax(axis=0) + 1, 0)

    grid = [i / 20 for i in range(20)]
    curve = [segmentation_metrics(expected(truths, label_at(t)))["miou"] for t in grid]
    result = read(tmp_path)
    by_rule = {figure["rule"]: figure for figure in result["figures"]}
    assert list(by_rule) == ["fixed", "oracle"]
    assert by_rule["fixed"]["threshold"] == fixed
    assert by_rule["fixed"]["miou"] == pytest.approx(segmentation_metrics(expected(truths, label_at(fixed)))["miou"])
    assert by_rule["oracle"]["threshold"] == grid[int(np.argmax(curve))]
    assert by_rule["oracle"]["miou"] == pytest.approx(max(curve))
    assert result["curve"]["threshold"] == grid
    assert result["curve"]["miou"] == pytest.approx(curve)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "confusion.npy"), expected(truths, label_at(fixed)))
    lines = (tmp_path / "out" / "thresholds.csv").read_text().splitlines()
    assert lines[0] == "threshold,miou,mfdr,mfnr"
    assert len(lines) == 21


def with_chosen(tmp_path, stage: Stage, threshold=0.37) -> Stage:
    (tmp_path / "threshold").mkdir(exist_ok=True)
    (tmp_path / "threshold" / "threshold.json").write_text(json.dumps({"threshold": threshold}))
    stage.spec.inputs["threshold"] = tmp_path / "threshold"
    return stage


def test_a_threshold_chosen_without_labels_is_named_and_used(tmp_path, truths):
    write_data(tmp_path)
    scores = write_scores(tmp_path)
    evaluate(with_chosen(tmp_path, make_stage(tmp_path, "walk", thresholds=20, threshold="auto")))
    figures = read(tmp_path)["figures"]
    assert [figure["rule"] for figure in figures] == ["auto", "oracle"] and figures[0]["threshold"] == 0.37
    by_hand = expected(truths, lambda name: np.where(scores[name].max(axis=0) > 0.37, scores[name].argmax(axis=0) + 1, 0))
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "confusion.npy"), by_hand)
    assert figures[0]["miou"] == pytest.approx(segmentation_metrics(by_hand)["miou"])
    assert (tmp_path / "out" / "per_class.csv").read_text().splitlines()[1].startswith("auto,0.37,background,")
    assert len((tmp_path / "out" / "thresholds.csv").read_text().splitlines()) == 21


def test_the_rule_of_pseudo_masks_is_passed_on(tmp_path, truths):
    write_data(tmp_path)
    for name, mask in truths.items():
        path = tmp_path / "predictions" / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_mask(path, np.where(mask == 255, 0, mask))
    stage = make_stage(tmp_path, "pseudo", protocol={**PROTOCOL, "threshold": "auto"})
    with pytest.raises(UserError, match=r"inputs\.threshold: missing"):
        evaluate(stage)
    evaluate(with_chosen(tmp_path, stage))
    (figure,) = read(tmp_path)["figures"]
    assert (figure["rule"], figure["threshold"], figure["miou"]) == ("auto", 0.37, 1)


def test_scores_with_background(tmp_path, truths):
    write_data(tmp_path)
    scores = write_scores(tmp_path, classes=(0, 1, 2))
    evaluate(make_stage(tmp_path, "refine", thresholds=10, threshold=0.3))
    figures = {figure["rule"]: figure for figure in read(tmp_path)["figures"]}
    assert list(figures) == ["argmax", "oracle"]
    assert figures["argmax"]["threshold"] is None
    by_hand = expected(truths, lambda name: scores[name].argmax(axis=0))
    assert figures["argmax"]["miou"] == pytest.approx(segmentation_metrics(by_hand)["miou"])
    t = figures["oracle"]["threshold"]
    by_hand = expected(truths, lambda name: np.where(scores[name][1:].max(axis=0) > t, scores[name][1:].argmax(axis=0) + 1, 0))
    assert figures["oracle"]["miou"] == pytest.approx(segmentation_metrics(by_hand)["miou"])


def test_image_without_classes_is_background(tmp_path, truths):
    write_data(tmp_path)
    write_scores(tmp_path, classes=())
    evaluate(make_stage(tmp_path, "cams", thresholds=5, threshold=0.3))
    assert np.load(tmp_path / "out" / "confusion.npy")[:, 1:].sum() == 0


def test_processes_give_the_same(tmp_path, truths, monkeypatch):
    write_data(tmp_path)
    write_scores(tmp_path)
    evaluate(make_stage(tmp_path, "cams", thresholds=5, threshold=0.3))
    alone = read(tmp_path)
    monkeypatch.setattr(module, "_CHUNK", 1)
    monkeypatch.setattr(module, "_FEW_IMAGES", 0)
    evaluate(make_stage(tmp_path, "cams", threads=2, thresholds=5, threshold=0.3))
    assert read(tmp_path) == alone


def test_no_masks_is_no_error(tmp_path, truths, capsys):
    write_data(tmp_path, with_masks=())
    evaluate(make_stage(tmp_path, "cams", thresholds=5, threshold=0.3))
    assert read(tmp_path)["figures"] == []
    assert "has no masks" in capsys.readouterr().err


def test_some_masks_missing(tmp_path, truths):
    write_data(tmp_path, with_masks=("a", "b"))
    write_scores(tmp_path)
    with pytest.raises(UserError, match=r"c\.jpg: has no mask"):
        evaluate(make_stage(tmp_path, "cams", thresholds=5, threshold=0.3))


@pytest.mark.parametrize(("mask", "message"), [(np.zeros((3, 4)), "4x3 pixels, the true mask"), (np.full((12, 16), 255), "ignored pixels")])
def test_wrong_prediction(tmp_path, truths, mask, message):
    write_data(tmp_path)
    (tmp_path / "predictions" / "masks").mkdir(parents=True)
    save_mask(tmp_path / "predictions" / "masks" / "a.png", mask.astype(np.uint8))
    with pytest.raises(UserError, match=message) as error:
        evaluate(make_stage(tmp_path, "pseudo"))
    assert "a.png" in str(error.value)
    assert not (tmp_path / "out" / "figures.json").exists()


def test_truth_of_another_size(tmp_path, truths):
    write_data(tmp_path)
    write_scores(tmp_path)
    save_mask(tmp_path / "data" / "masks" / "b.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match=r"b\.png: the mask is 4x4 pixels, its image 20x9"):
        evaluate(make_stage(tmp_path, "cams", thresholds=5, threshold=0.3))


def test_threshold_missing(tmp_path, truths):
    write_data(tmp_path)
    write_scores(tmp_path)
    with pytest.raises(UserError, match=r"parameters\.threshold: missing"):
        evaluate(make_stage(tmp_path, "cams", thresholds=5, threshold=None))


def test_classifier_needs_no_masks(tmp_path, truths, monkeypatch):
    write_data(tmp_path, with_masks=())
    probabilities = np.array([[0.9, 0.2], [0.8, 0.6], [0.3, 0.7]], np.float32)
    labels = np.array([[1, 0], [1, 0], [0, 0]], np.float32)
    module_of_classifier = types.ModuleType("wsss_core.engine.classifier")
    embeddings = np.random.default_rng(3).standard_normal((3, 4)).astype(np.float32)
    module_of_classifier.classify = lambda stage, index, split: (probabilities, labels, embeddings)
    monkeypatch.setitem(sys.modules, "wsss_core.engine.classifier", module_of_classifier)
    evaluate(make_stage(tmp_path, "classifier"))
    (figure,) = read(tmp_path)["figures"]
    assert (figure["rule"], figure["map"], figure["ap"]) == ("none", 1, {"cat": 1, "dog": None})
    assert figure["accuracy"] == pytest.approx(4 / 6)
    assert (tmp_path / "out" / "per_class.csv").read_text() == "class,ap\ncat,1.0\ndog,\n"
    kept, kept_labels = read_embeddings(tmp_path / "out")
    assert (kept.dtype, kept_labels.dtype) == (np.float16, bool)
    np.testing.assert_allclose(kept, embeddings, rtol=1e-3)
    np.testing.assert_array_equal(kept_labels, labels)


def test_a_classifier_may_have_no_embeddings(tmp_path, truths, monkeypatch):
    write_data(tmp_path)
    module_of_classifier = types.ModuleType("wsss_core.engine.classifier")
    module_of_classifier.classify = lambda stage, index, split: (np.full((3, 2), 0.4), np.ones((3, 2)), None)
    monkeypatch.setitem(sys.modules, "wsss_core.engine.classifier", module_of_classifier)
    evaluate(make_stage(tmp_path, "classifier"))
    assert read(tmp_path)["figures"][0]["map"] == 1
    assert read_embeddings(tmp_path / "out") is None


def test_unknown_subject(tmp_path, truths):
    write_data(tmp_path)
    with pytest.raises(UserError, match=r"parameters\.subject"):
        evaluate(make_stage(tmp_path, "pixels"))
