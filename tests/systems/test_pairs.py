"""What the pair systems share, and both of them as stages of the workflow: where they start, what trains, what comes out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import stage_at
from PIL import Image
from safetensors.torch import load_file
from score_trees import CLASSES, NETWORK, Tree, odd_images

from wsss_core.data.images import save_mask
from wsss_core.data.index import read_index
from wsss_core.engine import loop
from wsss_core.engine.models import save_model
from wsss_core.errors import UserError
from wsss_core.files import read_json
from wsss_core.plan import Plan
from wsss_core.stages.train import train
from wsss_core.store import ScoreStore
from wsss_core.systems import make_system
from wsss_core.systems.pairs import PairSystem, labels_on_grid, mean_with_mirrored

SMALL = {"epochs": 1, "batch_size": 4, "crop_size": 64, "resize": None, "radius": 3}
PAIRS: dict[str, Any] = {"classifier": {"epochs": 1}, "refine": {"affinity": SMALL, "boundary": SMALL}}


def pair_system(kind: str = "affinity", **changes: Any) -> PairSystem:
    system = make_system({"system": kind, **NETWORK, **changes}, len(CLASSES), "test")
    assert isinstance(system, PairSystem)
    return system


def classifier_at(directory: Path, backbone: str = "test_resnet") -> Path:
    torch.manual_seed(1)
    parameters = {"system": "cam", "backbone": backbone, "weights": "none"}
    model = make_system(parameters, len(CLASSES), "test").build()
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.normal_()
    directory.mkdir()
    save_model(directory, model, parameters, CLASSES)
    return directory


@pytest.mark.parametrize("kind", ["affinity", "boundary"])
def test_just_the_backbone_comes_from_the_classifier(tmp_path: Path, kind: str) -> None:
    system, directory = pair_system(kind), classifier_at(tmp_path / "classifier")
    model = system.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    system.start(model, {"data": tmp_path, "labels": tmp_path})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    system.start(model, {"data": tmp_path, "classifier": directory})
    given = load_file(directory / "model.safetensors")
    assert any(not torch.equal(value, given[name]) for name, value in before.items() if name in given)
    for name, value in model.state_dict().items():
        assert torch.equal(value, given[name] if name.startswith("features.") else before[name]), name


def test_another_backbone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, directory = pair_system(), classifier_at(tmp_path / "classifier", "test_vit")
    with pytest.raises(UserError, match=r"^\S+model\.safetensors: its backbone is not test_resnet; use `initial: weights`$"):
        system.start(system.build(), {"classifier": directory})
    state = load_file(classifier_at(tmp_path / "other") / "model.safetensors")
    name = next(name for name in state if name.startswith("features.") and state[name].ndim == 4)
    state[name] = state[name][:-1]  # as resnet50 and wide_resnet50_2: the same names, other widths
    monkeypatch.setattr("wsss_core.systems.initial.load_file", lambda path: state)
    with pytest.raises(UserError, match="its backbone is not test_resnet"):
        system.start(system.build(), {"classifier": tmp_path / "other"})


def test_a_missing_classifier_is_one_line(tmp_path: Path) -> None:
    system = pair_system()
    with pytest.raises(UserError, match=r"^\S+model\.safetensors: cannot be loaded \("):
        system.start(system.build(), {"classifier": tmp_path})


def test_labels_are_taken_at_the_centres_of_cells() -> None:
    target = torch.arange(16 * 24).view(1, 16, 24) % 251
    np.testing.assert_array_equal(labels_on_grid(target, (2, 3))[0], target[0, 4::8, 4::8])
    np.testing.assert_array_equal(labels_on_grid(target, torch.Size((4, 6)))[0], target[0, 2::4, 2::4])
    odd = torch.arange(9 * 13).view(1, 9, 13)
    rows, columns = [[int((i + 0.5) * side / cells) for i in range(cells)] for side, cells in ((9, 2), (13, 4))]
    np.testing.assert_array_equal(labels_on_grid(odd, (2, 4))[0], odd[0][rows][:, columns])


def test_padding_stays_ignored() -> None:
    target = torch.full((2, 64, 64), 255)
    target[0, :40, 24:] = 2
    target[1, :4] = 1  # thinner than half a cell: no centre lies in it
    labels = labels_on_grid(target, (8, 8))
    assert labels.dtype == torch.uint8
    expected = torch.full((2, 8, 8), 255, dtype=torch.uint8)
    expected[0, :5, 3:] = 2
    assert torch.equal(labels, expected)


@pytest.mark.parametrize("kind", ["affinity", "boundary"])
def test_training_samples_are_the_image_and_its_labels_padded_with_ignore(tmp_path: Path, kind: str) -> None:
    tree = Tree(tmp_path, odd_images())
    index = read_index(tree.root / "data", str(tree.root))
    labels = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (33, 47))
    (tmp_path / "made" / "labels").mkdir(parents=True)
    save_mask(tmp_path / "made" / "labels" / "a.png", labels)
    load = pair_system(kind, flip=0).load(index, {"labels": tmp_path / "made"})
    sample = load(index.split("train")[0])
    assert sample["image"].shape == (3, 64, 64) and sample["target"].shape == (64, 64) and sample["target"].dtype == torch.int64
    inside = sample["image"].abs().sum(dim=0) > 0  # the padding is the mean, 0 after normalisation
    assert inside.sum() == labels.size
    np.testing.assert_array_equal(sample["target"][inside].view(labels.shape), labels)
    assert (sample["target"][~inside] == 255).all()
    with pytest.raises(UserError, match=r"labels/b\.png: no such mask$"):
        load(index.split("train")[1])
    Image.fromarray(np.full((64, 64), 9, np.uint8)).save(tmp_path / "made" / "labels" / "b.png")
    with pytest.raises(UserError, match="label 9 is out of range"):
        load(index.split("train")[1])


def test_the_mirrored_image_counts_as_much() -> None:
    image = torch.rand(1, 3, 4, 7)

    def network(images: torch.Tensor) -> torch.Tensor:
        return images.cumsum(dim=-1)

    assert torch.equal(mean_with_mirrored(network, image, False), image.cumsum(dim=-1))
    both = (image.cumsum(dim=-1) + image.flip(-1).cumsum(dim=-1).flip(-1)) / 2
    torch.testing.assert_close(mean_with_mirrored(network, image, True), both)


@pytest.mark.parametrize(("kind", "freeze"), [("affinity", False), ("affinity", True), ("boundary", True), ("boundary", False)])
def test_a_frozen_backbone_ends_as_the_classifiers(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], kind: str, freeze: bool
) -> None:
    own = {**SMALL, "freeze_backbone": freeze, "epochs": 2}
    plan = planned({"classifier": {"epochs": 1}, "refine": {"method": kind, kind: own}})
    trained = load_file(do(plan, kind) / "model.safetensors")
    classifier = load_file(do(plan, "classifier") / "model.safetensors")
    assert {name for name in trained if name.startswith("features.")} == {name for name in classifier if name.startswith("features.")}
    same = {name: torch.equal(value, classifier[name]) for name, value in trained.items() if name.startswith("features.")}
    if freeze:
        assert all(same.values())
    else:
        learned = [not same[name] for name in same if name.endswith(("running_mean", "running_var"))]
        assert all(learned) and not same[next(name for name in same if trained[name].ndim == 4)]
    torch.manual_seed(plan.chains[0].seed)
    directory = plan.directory(plan.chains[0].stages[kind])
    start = make_system(read_json(directory / "model.json")["parameters"], 4, "test").build().state_dict()
    assert [name for name in trained if not name.startswith("features.") and torch.equal(trained[name], start[name])] == []


@pytest.mark.parametrize("kind", ["affinity", "boundary"])
def test_a_killed_training_of_a_pair_network_ends_the_same(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plan = planned({"classifier": {"epochs": 1}, "refine": {"method": kind, kind: {**SMALL, "epochs": 2}}})
    undisturbed = (do(plan, kind) / "model.safetensors").read_bytes()
    directory = plan.directory(plan.chains[0].stages[kind])
    original = loop.Fit._epoch

    def dies_in_the_second_epoch(self: Any, epoch: int) -> Any:
        if epoch == 1:
            raise KeyboardInterrupt
        return original(self, epoch)

    monkeypatch.setattr(loop.Fit, "_epoch", dies_in_the_second_epoch)
    shutil.rmtree(directory / "resume", ignore_errors=True)
    (directory / "model.safetensors").unlink()
    with pytest.raises(KeyboardInterrupt):
        train(stage_at(directory))
    monkeypatch.setattr(loop.Fit, "_epoch", original)
    train(stage_at(directory))
    assert (directory / "model.safetensors").read_bytes() == undisturbed


@pytest.mark.parametrize(
    ("refine", "rules"),
    [
        ({"method": "affinity"}, {"cams": "auto", "walk": "auto", "refine": "argmax", "pseudo": "argmax"}),
        ({"method": "boundary"}, {"cams": "auto", "walk": "auto", "refine": "argmax", "pseudo": "argmax"}),
        ({"method": "boundary", "crf": "none"}, {"cams": "auto", "walk": "auto", "pseudo": "auto"}),
        ({"method": "affinity", "crf": "none", "walk": {"background": "power"}}, {"cams": "auto", "walk": "argmax", "pseudo": "argmax"}),
    ],
)
def test_the_chain_ends_with_judged_pseudo_masks(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], refine: dict[str, Any], rules: dict[str, str]
) -> None:
    plan = planned({**PAIRS, "experiments": {"crf": {"refine": refine}}})
    chain = plan.chains[0]
    for subject, rule in rules.items():
        figures = read_json(do(plan, f"evaluate-{subject}") / "figures.json")
        first = figures["figures"][0]
        assert first["rule"] == rule and 0 <= first["miou"] <= 1, subject
        role = chain.evaluations[subject].upstream.get("threshold")
        number = read_json(plan.directory(role) / "threshold.json")["threshold"] if role else None
        assert first["threshold"] == number, subject
        assert (number is not None) is (rule == "auto")
    assert set(rules) == set(chain.evaluations) - {"classifier", "segmenter"}
    masks = sorted(path.name for path in (plan.directory(chain.stages["pseudo"]) / "masks").rglob("*.png"))
    walk = plan.directory(chain.stages["walk"])
    with ScoreStore(walk / "scores.h5") as store:
        assert len(store) == len(masks) == 12
        with_background = refine.get("walk", {}).get("background") == "power"
        assert all((0 in classes) is with_background for _, _, classes in store if len(classes))
    assert (walk / "boundary.h5").exists() is (refine["method"] == "boundary")
