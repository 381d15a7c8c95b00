"""The `walk` stage with untrained networks: against the walk of each image alone, any size, batches, kill and resume, wrong input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from score_trees import Tree, odd_images
from torch.nn import functional

from wsss_core.config import Walk
from wsss_core.data.images import read_image
from wsss_core.data.transforms import normalise
from wsss_core.engine.models import TrainedModel, save_model
from wsss_core.errors import UserError
from wsss_core.losses.affinity import pair_affinity
from wsss_core.refine.random_walk import walk_affinity, walk_boundary
from wsss_core.stage import Stage
from wsss_core.stages import walk as walk_stage
from wsss_core.stages.walk import finish, steps_for, walk_scores
from wsss_core.store import ScoreStore
from wsss_core.systems import make_system

STRIDE = {"affinity": 8, "boundary": 4}
BETA = {"affinity": 8, "boundary": 10}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, odd_images())


def walked(tree: Tree, output: str = "walk", **changes: Any) -> Stage:
    parameters = Walk.model_validate({"steps": 16, **changes}).model_dump(mode="json")
    stage = tree.stage("walk", parameters, output, model="model")
    walk_scores(stage)
    return stage


def by_hand(trained: TrainedModel, image: np.ndarray, cams: np.ndarray, config: Walk) -> np.ndarray:
    """The walk of one image, step by step from the network's output."""
    system, kind = trained.system, trained.system.config.system
    size = [max(1, round(side * (config.resize or max(image.shape)) / max(image.shape))) for side in image.shape[:2]]
    pixels = normalise(image, system.mean, system.std)[None]
    if config.resize:
        shrinks = config.resize < max(image.shape)
        pixels = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
    with torch.no_grad():
        outputs = [trained.model(pixels), trained.model(pixels.flip(-1))]
    plain, mirrored = outputs if kind == "affinity" else (outputs[0][0], outputs[1][0])
    output = (plain + mirrored.flip(-1)) / 2 if config.flip else plain
    grid = tuple(-(-side // STRIDE[kind]) for side in size)
    scores = functional.interpolate(torch.from_numpy(cams)[None], size=grid, mode="bilinear", align_corners=False, antialias=True)[0]
    if config.background == "power":
        scores = torch.cat([(1 - scores.max(dim=0, keepdim=True).values) ** config.background_power, scores])
    steps, beta = steps_for((size[0], size[1]), config.steps), config.beta or BETA[kind]
    if kind == "affinity":
        result = walk_affinity(scores, pair_affinity(output, 3)[0], radius=3, beta=beta, steps=steps)
    else:
        result = walk_boundary(scores, output.sigmoid()[0, 0], radius=config.radius, beta=beta, steps=steps)
    if config.background == "power":
        return (result / result.sum(dim=0)).numpy()
    most = result.max() if config.normalise == "image" else result.amax(dim=(1, 2), keepdim=True)
    return (result / most).numpy()


@pytest.mark.parametrize("kind", ["affinity", "boundary"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 0},
        {"steps": "auto", "flip": False},
        {"beta": 2.0, "radius": 4, "steps": 64},
        {"normalise": "class"},
        {"background": "power", "background_power": 3.0},
        {"resize": 40, "steps": "auto"},
        {"resize": 75},
    ],
)
def test_every_image_walks_as_if_it_were_alone(tree: Tree, kind: str, changes: dict[str, Any]) -> None:
    trained, config = tree.network(kind), Walk.model_validate({"steps": 16, **changes})
    stage = walked(tree, **changes)
    with ScoreStore(stage.output / "scores.h5") as store:
        assert store.ids == list(tree.made) and store.num_classes == 4
        for name, made in tree.made.items():
            scores, classes = store.read(name)
            assert store.size(name) == made.image.shape[:2]
            if not made.classes:
                assert scores.shape[0] == len(classes) == 0
                continue
            assert tuple(classes) == ((0, *made.classes) if config.background == "power" else made.classes)
            np.testing.assert_allclose(scores, by_hand(trained, made.image, made.cams, config), atol=2e-3)


@pytest.mark.parametrize("kind", ["affinity", "boundary"])
def test_the_grid_has_a_cell_for_every_pixel(tree: Tree, kind: str) -> None:
    trained = tree.network(kind)
    stage = walked(tree)
    with ScoreStore(stage.output / "scores.h5") as store:
        for name, made in tree.made.items():
            height, width = (-(-side // STRIDE[kind]) for side in made.image.shape[:2])
            assert store.read(name)[0].shape == (len(made.classes), height, width)
    path = stage.output / "boundary.h5"
    assert path.exists() is (kind == "boundary")
    if kind == "boundary":
        with ScoreStore(path) as boundaries:
            assert boundaries.ids == list(tree.made)
            for name, made in tree.made.items():
                boundary, classes = boundaries.read(name)
                pixels = normalise(read_image(tree.image(name)), trained.system.mean, trained.system.std)[None]
                with torch.no_grad():
                    logits = (trained.model(pixels)[0] + trained.model(pixels.flip(-1))[0].flip(-1)) / 2
                np.testing.assert_allclose(boundary, logits.sigmoid()[0].numpy(), atol=0.6 / 255)
                assert boundary.std() > 0.001 and list(classes) == [0] and boundaries.size(name) == made.image.shape[:2]


@pytest.mark.parametrize("kind", ["affinity", "boundary"])
@pytest.mark.parametrize("background", ["threshold", "power"])
def test_batches_change_nothing(tree: Tree, monkeypatch: pytest.MonkeyPatch, kind: str, background: str) -> None:
    tree.network(kind)
    sizes, original = [], walk_stage.walk
    monkeypatch.setattr(walk_stage, "walk", lambda scores, *rest: sizes.append(len(scores)) or original(scores, *rest))
    together = walked(tree, "together", background=background)
    assert sum(sizes) == len(tree.made) and len(sizes) < len(tree.made) and max(sizes) > 1
    monkeypatch.setattr(walk_stage, "_MOST_IMAGES", 1)
    monkeypatch.setattr(walk_stage, "_IMAGES_PER_SHARD", 2)
    alone = walked(tree, "alone", background=background)
    with ScoreStore(together.output / "scores.h5") as first, ScoreStore(alone.output / "scores.h5") as second:
        assert first.ids == second.ids
        for (_, scores, classes), (_, others, same) in zip(first, second, strict=True):
            np.testing.assert_array_equal(classes, same)
            np.testing.assert_allclose(scores, others, atol=1e-3)


@pytest.mark.parametrize("kind", ["affinity", "boundary"])
def test_a_background_that_walks_makes_sums_of_one(tree: Tree, kind: str) -> None:
    tree.network(kind)
    with ScoreStore(walked(tree, background="power").output / "scores.h5") as store:
        for name, made in tree.made.items():
            scores, classes = store.read(name)
            assert list(classes) == ([0, *made.classes] if made.classes else [])
            if made.classes:
                np.testing.assert_allclose(scores.sum(axis=0), 1, atol=2e-3)


def test_scores_are_divided_by_their_maximum() -> None:
    walk = torch.tensor([[[0.1, 0.4]], [[0.05, 0.2]]])
    torch.testing.assert_close(finish(walk, Walk()).amax(dim=(1, 2)), torch.tensor([1.0, 0.5]), atol=1e-4, rtol=0)
    torch.testing.assert_close(finish(walk, Walk(normalise="class")).amax(dim=(1, 2)), torch.ones(2), atol=1e-4, rtol=0)
    assert finish(torch.zeros(2, 3, 4), Walk()).eq(0).all()
    assert finish(torch.zeros(0, 3, 4), Walk()).shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("size", "steps", "expected"),
    [
        ((375, 500), "auto", 256),
        ((500, 375), "auto", 256),
        ((188, 250), "auto", 64),
        ((1000, 750), "auto", 1024),
        ((64, 64), "auto", 4),
        ((1, 1), "auto", 1),
        ((4.5, 6.5), "auto", 1),
        ((375, 500), 100, 100),
        ((1, 1), 0, 0),
    ],
)
def test_steps_go_with_the_area(size: tuple[float, float], steps: Any, expected: int) -> None:
    assert steps_for(size, steps) == expected


@pytest.mark.parametrize("kind", ["affinity", "boundary"])
def test_stopped_and_started_again_gives_the_same_bytes(tree: Tree, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    tree.network(kind)
    monkeypatch.setattr(walk_stage, "_IMAGES_PER_SHARD", 3)
    undisturbed, original, seen = walked(tree, "undisturbed"), walk_stage.affinities_of, []

    def stop_at_fifth(*arguments: Any) -> Any:
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(walk_stage, "affinities_of", stop_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        walked(tree)
    assert not (tree.root / "walk" / "scores.h5").exists()
    seen.clear()
    monkeypatch.setattr(walk_stage, "affinities_of", lambda *arguments: seen.append(arguments[-1]) or original(*arguments))
    stage = walked(tree)
    assert seen == list(tree.made)[3:]
    files = ["scores.h5", *(["boundary.h5"] if kind == "boundary" else [])]
    for file in files:
        assert (stage.output / file).read_bytes() == (undisturbed.output / file).read_bytes()
    (stage.resume / "shard-0000006.h5").unlink()
    seen.clear()
    walked(tree)
    assert seen == list(tree.made)[6:]
    for file in files:
        assert (stage.output / file).read_bytes() == (undisturbed.output / file).read_bytes()


def test_an_image_of_another_size_is_one_line(tree: Tree) -> None:
    tree.network("boundary")
    Image.new("RGB", (64, 65)).save(tree.image("b"))
    with pytest.raises(UserError, match=r"^image 'b' is 64x65 pixels, its scores are for 64x64; make them again$"):
        walked(tree)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("images/sub/c.png", r"sub/c\.png: no such image$"),
        ("cams/scores.h5", "run the stage 'scores' first"),
        ("model/model.json", r"model\.json: .*cannot be read"),
        ("model/model.safetensors", r"model\.safetensors: cannot be loaded"),
    ],
)
def test_a_missing_input_is_one_line(tree: Tree, missing: str, expected: str) -> None:
    tree.network("affinity")
    (tree.root / missing).unlink()
    with pytest.raises(UserError, match=expected):
        walked(tree)


def test_a_classifier_gives_nothing_to_walk_by(tree: Tree) -> None:
    parameters = {"system": "cam", "backbone": "test_resnet", "weights": "none"}
    save_model(tree.make("model"), make_system(parameters, 4, "test").build(), parameters, ("background", "a", "b", "c"))
    with pytest.raises(UserError, match="the system cam gives no affinities to walk by"):
        walked(tree)


def test_wrong_parameters_are_one_line(tree: Tree) -> None:
    tree.network("affinity")
    with pytest.raises(UserError, match=r"spec\.json: steps.*greater than or equal to 0 or 'auto', got -1"):
        walk_scores(tree.stage("walk", {"steps": -1}, model="model"))
