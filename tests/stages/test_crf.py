"""The stages `crf` and `pseudo` on a small made data set: contents, kill and resume, wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from wsss_core.data.images import read_image, read_mask
from wsss_core.data.index import INDEX_FILE, DataIndex, Record, write_index
from wsss_core.errors import UserError
from wsss_core.refine import pseudo
from wsss_core.refine.crf import crf_soft
from wsss_core.refine.pseudo import label_map
from wsss_core.refine.scores import add_background, upsample
from wsss_core.stage import Spec, Stage
from wsss_core.stages import crf as crf_stage
from wsss_core.stages.crf import refine_with_crf
from wsss_core.stages.pseudo import make_pseudo_masks
from wsss_core.store import ScoreStore, ScoreWriter

REFINE = {"background": 0.25, "background_power": 4.0, "crf": "vitpcm"}
PSEUDO = {"threshold": 0.3, "crf": "none"}
COUNT, HEIGHT, WIDTH = 7, 16, 22
# Image i shows a square of its own colour and place; number 3 holds no object; "b/5" lies in a folder.
IDS = ["0", "1", "2", "3", "4", "b/5", "6"]


class Tree:
    """A data stage, a cams stage and what is needed to run the stages after them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        records = []
        rng = np.random.default_rng(0)
        with ScoreWriter(self.make("cams") / "scores.h5", 4) as writer:
            for number, name in enumerate(IDS):
                labels = () if number == 3 else (1, 3) if number == 4 else (number % 3 + 1,)
                image = np.full((HEIGHT, WIDTH, 3), (40, 120, 60), np.uint8)
                image[4:12, 3 + number : 11 + number] = (200, 20 * number, 30)
                image += rng.integers(0, 6, image.shape, dtype=np.uint8)
                self.image(name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(self.image(name))
                cams = np.zeros((len(labels), 4, 6), np.float16)
                cams[:1, 1:3, (3 + number) // 4 : (3 + number) // 4 + 2] = 1
                cams[1:, 3, 0] = 1
                writer.add(name, cams, np.array(labels), (HEIGHT, WIDTH))
                records.append(Record(name, f"images/{name}.png", labels))
        index = DataIndex(("background", "a", "b", "c"), {"train": tuple(records)}, "made", root, self.make("data"))
        (root / "data" / INDEX_FILE).write_text(json.dumps(write_index(index)))

    def make(self, name: str) -> Path:
        (self.root / name).mkdir(exist_ok=True)
        return self.root / name

    def image(self, name: str) -> Path:
        return self.root / "images" / f"{name}.png"

    def stage(self, kind: str, parameters: dict[str, Any], scores: str = "cams", threads: int = 1, output: str | None = None) -> Stage:
        inputs = {"data": self.root / "data", "scores": self.root / scores}
        spec = Spec(kind, "0123456789", 1, parameters, None, {}, inputs, {"root": str(self.root)}, {}, self.make(output or kind))
        return Stage(spec, threads, 0)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setattr(crf_stage, "_IMAGES_PER_SHARD", 3)
    return Tree(tmp_path)


def square(number: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[4:12, 3 + number : 11 + number] = True
    return mask


def test_refined_store_holds_probabilities_with_background(tree: Tree) -> None:
    refine_with_crf(tree.stage("crf", REFINE))
    with ScoreStore(tree.root / "crf" / "scores.h5") as store:
        assert store.ids == IDS and store.num_classes == 4 and store.dtype == np.uint8 and store.compressed
        assert [list(classes) for _, _, classes in store] == [[0, 1], [0, 2], [0, 3], [0], [0, 1, 3], [0, 3], [0, 1]]
        for number, name in enumerate(IDS):
            scores, _ = store.read(name)
            assert store.size(name) == scores.shape[1:] == (HEIGHT, WIDTH)
            np.testing.assert_allclose(scores.sum(axis=0), 1, atol=0.01)
            if number not in (3, 4):
                assert (scores.argmax(axis=0) == square(number)).mean() > 0.95
        assert (store.read("3")[0] == 1).all()


def test_each_image_may_have_its_own_background(tree: Tree) -> None:
    refine_with_crf(tree.stage("crf", {**REFINE, "background": "otsu"}))
    with ScoreStore(tree.root / "crf" / "scores.h5") as store, ScoreStore(tree.root / "cams" / "scores.h5") as cams:
        for name in ("0", "4"):
            scores = add_background(upsample(cams.read(name)[0], (HEIGHT, WIDTH)), "otsu", 4.0)
            expected = crf_soft(read_image(tree.image(name)), scores, REFINE["crf"])
            np.testing.assert_allclose(store.read(name)[0], expected, atol=0.5 / 255 + 1e-6)


def with_background(tree: Tree) -> dict[str, np.ndarray]:
    """Write scores as of a walk with a background among them, for all but "3"; return them at full size."""
    full = {}
    with ScoreStore(tree.root / "cams" / "scores.h5") as cams, ScoreWriter(tree.make("walk") / "scores.h5", 4) as writer:
        for name, maps, classes in cams:
            scores = np.concatenate([np.full_like(maps[:1], 0.4), maps]) if len(maps) else maps
            scores = (scores / scores.sum(axis=0)).astype(np.float16) if len(maps) else maps
            writer.add(name, scores, np.concatenate([[0], classes]) if len(maps) else classes, (HEIGHT, WIDTH))
            full[name] = upsample(scores.astype(np.float32), (HEIGHT, WIDTH))
    return full


def test_a_background_that_walked_along_is_kept(tree: Tree) -> None:
    full = with_background(tree)
    refine_with_crf(tree.stage("crf", {**REFINE, "background": 0.9}, scores="walk"))
    with ScoreStore(tree.root / "crf" / "scores.h5") as store:
        assert [list(classes) for _, _, classes in store] == [[0, 1], [0, 2], [0, 3], [0], [0, 1, 3], [0, 3], [0, 1]]
        assert (store.read("3")[0] == 1).all()
        for name in ("0", "4", "b/5"):
            expected = crf_soft(read_image(tree.image(name)), full[name], REFINE["crf"])
            np.testing.assert_allclose(store.read(name)[0], expected, atol=0.5 / 255 + 1e-6)


def test_masks_of_scores_with_a_background_need_no_threshold_and_no_crf(tree: Tree) -> None:
    full = with_background(tree)
    make_pseudo_masks(tree.stage("pseudo", {**PSEUDO, "threshold": None}, scores="walk"))
    for name, classes in (("0", [0, 1]), ("4", [0, 1, 3])):
        expected = np.array(classes)[full[name].argmax(axis=0)]
        np.testing.assert_array_equal(read_mask(tree.root / f"pseudo/masks/{name}.png"), expected)
        assert sorted(np.unique(expected)) == classes
    assert not read_mask(tree.root / "pseudo/masks/3.png").any()
    assert json.loads((tree.root / "pseudo/summary.json").read_text())["threshold"] is None


def test_masks_follow_the_threshold_of_the_threshold_stage(tree: Tree) -> None:
    (tree.make("threshold") / "threshold.json").write_text('{"threshold": 0.7}')
    stage = tree.stage("pseudo", {**PSEUDO, "threshold": "auto"}, output="auto")
    with pytest.raises(UserError, match=r"inputs\.threshold: missing"):
        make_pseudo_masks(stage)
    stage.spec.inputs["threshold"] = tree.root / "threshold"
    make_pseudo_masks(stage)
    for output, threshold in (("same", 0.7), ("other", 0.3)):
        make_pseudo_masks(tree.stage("pseudo", {**PSEUDO, "threshold": threshold}, output=output))
    same, other = ([(tree.root / output / file).read_bytes() for file in ("summary.json", "masks/4.png")] for output in ("same", "other"))
    assert [(stage.output / file).read_bytes() for file in ("summary.json", "masks/4.png")] == same != other
    assert json.loads(same[0])["threshold"] == 0.7


def test_stopped_and_started_again_gives_the_same_bytes(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    refine_with_crf(tree.stage("crf", REFINE, output="undisturbed"))
    refined, count = crf_stage.refine_image, iter(range(1000))

    def stop_at_five(*arguments: Any) -> Any:
        if next(count) == 5:
            raise KeyboardInterrupt
        return refined(*arguments)

    stage = tree.stage("crf", REFINE)
    monkeypatch.setattr(crf_stage, "refine_image", stop_at_five)
    with pytest.raises(KeyboardInterrupt):
        refine_with_crf(stage)
    assert [path.name for path in stage.resume.iterdir()] == ["shard-00000.h5"]
    assert not (stage.output / "scores.h5").exists()
    seen = []
    monkeypatch.setattr(crf_stage, "refine_image", lambda *arguments: seen.append(arguments[-1][0]) or refined(*arguments))
    refine_with_crf(stage)
    assert seen == IDS[3:]
    assert (stage.output / "scores.h5").read_bytes() == (tree.root / "undisturbed" / "scores.h5").read_bytes()
    assert "3 of 7 images were refined earlier" in (stage.output / "log.txt").read_text()


def test_processes_change_nothing(tree: Tree) -> None:
    for threads in (1, 2):
        refine_with_crf(tree.stage("crf", REFINE, threads=threads, output=f"crf{threads}"))
        make_pseudo_masks(tree.stage("pseudo", {**PSEUDO, "crf": "labels"}, threads=threads, output=f"pseudo{threads}"))
    for name in ("crf{}/scores.h5", "pseudo{}/summary.json", "pseudo{}/masks/b/5.png"):
        assert (tree.root / name.format(1)).read_bytes() == (tree.root / name.format(2)).read_bytes()


def test_masks_of_maps_follow_the_threshold(tree: Tree) -> None:
    stage = tree.stage("pseudo", PSEUDO)
    make_pseudo_masks(stage)
    masks = {name: read_mask(stage.output / "masks" / f"{name}.png") for name in IDS}
    assert [sorted(np.unique(masks[name])) for name in IDS] == [[0, 1], [0, 2], [0, 3], [0], [0, 1, 3], [0, 3], [0, 1]]
    assert all(mask.shape == (HEIGHT, WIDTH) for mask in masks.values())
    summary = json.loads((stage.output / "summary.json").read_text())
    assert summary["images"] == COUNT and summary["all_background"] == ["3"] and summary["missed"] == 0
    assert list(summary["share"]) == ["background", "a", "b", "c"]
    assert summary["share"]["b"] == pytest.approx((np.stack(list(masks.values())) == 2).mean(), abs=1e-6)
    make_pseudo_masks(tree.stage("pseudo", {**PSEUDO, "threshold": 1.0}, output="strict"))
    assert json.loads((tree.root / "strict" / "summary.json").read_text())["missed"] == 6
    assert "6 images have classes" in (tree.root / "strict" / "log.txt").read_text()


def test_masks_of_refined_scores_need_no_threshold(tree: Tree) -> None:
    refine_with_crf(tree.stage("crf", REFINE))
    make_pseudo_masks(tree.stage("pseudo", {**PSEUDO, "threshold": 1.0}, scores="crf"))
    for number, name, label in ((0, "0", 1), (5, "b/5", 3)):
        assert (read_mask(tree.root / f"pseudo/masks/{name}.png") == label * square(number)).mean() > 0.95
    assert not read_mask(tree.root / "pseudo/masks/3.png").any()


def test_label_crf_snaps_masks_to_colours(tree: Tree) -> None:
    for crf in ("none", "labels"):
        make_pseudo_masks(tree.stage("pseudo", {"threshold": 0.2, "crf": crf}, output=crf))
    agreement = {crf: (read_mask(tree.root / crf / "masks/1.png") == 2 * square(1)).mean() for crf in ("none", "labels")}
    assert agreement["labels"] > 0.97 > agreement["none"]


def test_masks_already_there_are_kept(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pseudo_masks(tree.stage("pseudo", PSEUDO, output="undisturbed"))
    stage, written = tree.stage("pseudo", PSEUDO), []
    save = pseudo.save_mask

    def stop_at_fourth(path: Path, mask: np.ndarray) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        save(path, mask)

    monkeypatch.setattr(pseudo, "save_mask", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt):
        make_pseudo_masks(stage)
    assert sorted(path.name for path in (stage.resume / "masks").rglob("*")) == ["0.png", "1.png", "2.png"]
    written.clear()
    monkeypatch.setattr(pseudo, "save_mask", lambda path, mask: written.append(path) or save(path, mask))
    make_pseudo_masks(stage)
    assert len(written) == 4 and not (stage.resume / "masks").exists()
    for path in ("summary.json", *(f"masks/{name}.png" for name in IDS)):
        assert (stage.output / path).read_bytes() == (tree.root / "undisturbed" / path).read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_missing_image_is_one_line(tree: Tree, threads: int) -> None:
    tree.image("4").unlink()
    with pytest.raises(UserError, match=r"images/4\.png: no such image$"):
        refine_with_crf(tree.stage("crf", REFINE, threads=threads))


def test_an_image_of_another_size_is_one_line(tree: Tree) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tree.image("2"))
    for work, parameters in ((refine_with_crf, REFINE), (make_pseudo_masks, {**PSEUDO, "crf": "labels"})):
        with pytest.raises(UserError, match=r"2\.png: the image is 22x17 pixels, its scores are for 22x16"):
            work(tree.stage("crf", parameters))


def test_a_store_of_other_images_is_one_line(tree: Tree) -> None:
    with ScoreWriter(tree.root / "cams" / "scores.h5", 4) as writer:
        writer.add("stranger", np.zeros((0, 2, 2)), np.zeros(0), (8, 8))
    for work, parameters in ((refine_with_crf, REFINE), (make_pseudo_masks, PSEUDO)):
        with pytest.raises(UserError, match=r"scores\.h5: holds the image 'stranger', which is not in the index"):
            work(tree.stage("crf", parameters))
    with ScoreWriter(tree.root / "cams" / "scores.h5", 4):
        pass
    with pytest.raises(UserError, match="holds no image"):
        refine_with_crf(tree.stage("crf", REFINE))
    (tree.root / "cams" / "scores.h5").unlink()
    with pytest.raises(UserError, match="run the stage 'scores' first"):
        make_pseudo_masks(tree.stage("pseudo", PSEUDO))


def test_label_map() -> None:
    scores = np.array([[[0.3, 0.2, 0.5]], [[0.3, 0.4, 0.5]]], np.float32)
    np.testing.assert_array_equal(label_map(scores, np.array([2, 5]), 0.3), [[0, 2, 1]])  # not above the threshold: background
    np.testing.assert_array_equal(label_map(scores, np.array([0, 5]), 0.9), [[0, 1, 0]])  # ties go to background
    np.testing.assert_array_equal(label_map(scores[:0], np.array([], int), 0.3), [[0, 0, 0]])
