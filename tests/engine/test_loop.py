"""The training loop on tiny made images: repeatable, resumable, honest about trouble."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import metrics, prepared, stage_at
from safetensors.torch import load_file
from two_branches import PAPER

from wsss_core.engine import loop
from wsss_core.engine.models import load_model
from wsss_core.errors import UserError
from wsss_core.plan import Plan
from wsss_core.stages.train import train
from wsss_core.systems.apc import Apc
from wsss_core.systems.base import CamSystem
from wsss_core.systems.boundary import BoundarySystem
from wsss_core.systems.cam import Cam
from wsss_core.systems.mcl import Mcl
from wsss_core.systems.puzzle import Puzzle


def test_the_same_seed_gives_the_same_bytes(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    directory = prepared(planned, do)
    results = []
    for _ in range(2):
        train(stage_at(directory))
        results.append((directory / "model.safetensors").read_bytes())
        (directory / "resume" / "checkpoint.pt").unlink()
    assert results[0] == results[1]
    frame = metrics(directory)
    assert list(frame.columns) == ["step", "epoch", "lr", "classification", "total"]
    assert list(frame["step"]) == [3, 6]


def test_another_seed_gives_another_model(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    models = []
    for seed in (0, 1):
        directory = prepared(planned, do, {"seeds": [seed], "classifier": {"epochs": 1}})
        train(stage_at(directory))
        models.append(load_file(directory / "model.safetensors"))
    assert not torch.equal(models[0]["classifier.weight"], models[1]["classifier.weight"])


def test_workers_change_nothing(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    results = []
    for workers in (0, 2):
        directory = prepared(planned, do, {"run": {"workers": workers}, "classifier": {"epochs": 1}})
        train(stage_at(directory))
        results.append((directory / "model.safetensors").read_bytes())
        (directory / "resume" / "checkpoint.pt").unlink()
    assert results[0] == results[1]


def test_workers_and_resuming_leave_dropout_alone(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    """The segmenter has dropout, which draws from the generator that a DataLoader would draw from too."""
    results = []
    for workers, stop in ((0, False), (1, False), (1, True)):
        plan = planned({"experiments": {"crf": {"supervision": "masks"}}, "segmenter": {"epochs": 2}, "run": {"workers": workers}})
        do(plan, "data")
        directory = plan.directory(plan.chains[0].stages["segmenter"])
        if stop:
            original = loop.Fit._epoch

            def dies_in_the_second_epoch(self: Any, epoch: int, original: Any = original) -> Any:
                if epoch == 1:
                    raise KeyboardInterrupt
                return original(self, epoch)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop.Fit, "_epoch", dies_in_the_second_epoch)
                with pytest.raises(KeyboardInterrupt):
                    train(stage_at(directory))
        train(stage_at(directory))
        results.append((directory / "model.safetensors").read_bytes())
        (directory / "resume" / "checkpoint.pt").unlink()
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("classifier", "owner", "method"),
    [
        ({"optimizer": "sgd"}, Cam, "losses"),
        ({"optimizer": "adam"}, Cam, "losses"),
        ({"system": "puzzle"}, Puzzle, "puzzle_losses"),
        ({"system": "rsa_cfc"}, Puzzle, "puzzle_losses"),
        ({"system": "rsa_cfc", **PAPER}, Puzzle, "puzzle_losses"),
        ({"system": "mcl", "crop_pair": 48, "image_from": 0, "pixel_from": 1, "region_from": 2}, Mcl, "losses"),
        (
            {"system": "apc", "backbone": "test_vit", "resize": "square", "head_epochs": 2},
            Apc,
            "losses",
        ),  # killed before the backbone learns
        ({"system": "apc", "backbone": "test_vit", "resize": "square", "head_epochs": 1}, Apc, "losses"),
    ],
    ids=["sgd", "adam", "puzzle", "rsa_cfc", "rsa_cfc-paper", "mcl", "apc-head", "apc"],
)
def test_a_killed_training_resumes_and_ends_the_same(
    planned: Callable[..., Plan],
    do: Callable[[Plan, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    classifier: dict[str, Any],
    owner: type[CamSystem],
    method: str,
) -> None:
    directory = prepared(planned, do, {"classifier": {"epochs": 3, **classifier}})
    train(stage_at(directory))
    undisturbed = metrics(directory), (directory / "model.safetensors").read_bytes()
    (directory / "resume" / "checkpoint.pt").unlink()
    (directory / "model.safetensors").unlink()

    steps = iter(range(100))
    original = getattr(owner, method)

    def dies_in_the_second_epoch(self: CamSystem, *arguments: Any) -> Any:
        if next(steps) == 4:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(owner, method, dies_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(stage_at(directory))
    monkeypatch.setattr(owner, method, original)
    assert len(metrics(directory)) == 1
    train(stage_at(directory))
    pd.testing.assert_frame_equal(metrics(directory), undisturbed[0])
    assert (directory / "model.safetensors").read_bytes() == undisturbed[1]


def test_a_system_starts_before_and_ends_after_the_epochs(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, calls = prepared(planned, do), []
    originals = Cam.losses, Cam.load

    def start(self: Cam, model: Any, inputs: dict[str, Path]) -> None:
        calls.append("start")
        assert set(inputs) == {"data"} and model.training
        with torch.no_grad():
            model.classifier.weight.fill_(0.125)

    def losses(self: Cam, model: Any, batch: Any, progress: Any) -> Any:
        if "losses" not in calls:
            assert bool((model.classifier.weight == 0.125).all())
            calls.append("losses")
        return originals[0](self, model, batch, progress)

    def after_training(self: Cam, model: Any, batches: Any) -> None:
        assert not model.training
        shapes = [tuple(batch["image"].shape) for batch in batches]
        assert shapes == [(4, 3, 64, 64)] * 3
        calls.append("after")
        with torch.no_grad():
            model.classifier.weight.fill_(0.25)

    for name, function in (("start", start), ("losses", losses), ("after_training", after_training)):
        monkeypatch.setattr(Cam, name, function)
    train(stage_at(directory))
    assert calls == ["start", "losses", "after"]
    assert bool((load_file(directory / "model.safetensors")["classifier.weight"] == 0.25).all())


def test_a_training_killed_after_its_last_epoch_gets_the_same_mean_shift(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"epochs": 1, "batch_size": 5, "crop_size": 64, "resize": None, "radius": 3}
    plan = planned({"classifier": {"epochs": 1}, "refine": {"method": "boundary", "boundary": own}})
    directory = plan.directory(plan.chains[0].stages["boundary"])
    undisturbed = (do(plan, "boundary") / "model.safetensors").read_bytes()
    assert load_file(directory / "model.safetensors")["displacement.mean_shift.mean"].abs().min() > 0
    (directory / "model.safetensors").unlink()
    original = BoundarySystem.after_training

    def dies_in_the_pass(self: BoundarySystem, model: Any, batches: Any) -> None:
        original(self, model, itertools.islice(batches, 1))
        raise KeyboardInterrupt

    monkeypatch.setattr(BoundarySystem, "after_training", dies_in_the_pass)
    with pytest.raises(KeyboardInterrupt):
        train(stage_at(directory))
    assert not (directory / "model.safetensors").exists()
    monkeypatch.setattr(BoundarySystem, "after_training", original)
    monkeypatch.setattr(loop.Fit, "_epoch", None)  # no epoch is left to do
    train(stage_at(directory))
    assert (directory / "model.safetensors").read_bytes() == undisturbed


def test_accumulated_batches_step_once(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    directory = prepared(planned, do, {"classifier": {"epochs": 1, "batch_size": 2, "accumulate": 4}})
    train(stage_at(directory))
    assert list(metrics(directory)["step"]) == [2]  # 6 batches: 4 and 2


def test_a_loss_that_is_not_finite_stops_the_training(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = prepared(planned, do)
    monkeypatch.setattr(Cam, "losses", lambda self, model, batch, progress: {"x": model(batch["image"]).mean() * float("nan")})
    with pytest.raises(UserError, match="the loss is nan after epoch 1; try a smaller lr"):
        train(stage_at(directory))


def test_a_saved_model_is_the_trained_one(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    directory = prepared(planned, do)
    train(stage_at(directory))
    trained = load_model(directory)
    assert trained.classes[0] == "background"
    assert not trained.model.training
    with torch.no_grad():
        assert trained.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("damage", ["missing", "weights", "description"])
def test_a_damaged_model_is_one_line(planned: Callable[..., Plan], do: Callable[[Plan, str], Path], damage: str) -> None:
    directory = prepared(planned, do, {"classifier": {"epochs": 1}})
    train(stage_at(directory))
    if damage == "missing":
        (directory / "model.safetensors").unlink()
    else:
        (directory / ("model.safetensors" if damage == "weights" else "model.json")).write_bytes(io.BytesIO(b"{}").read())
    with pytest.raises(UserError):
        load_model(directory)


def test_what_a_system_observes_is_logged_and_no_loss(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mean over the batches that observed it; the total and the model are those of the losses alone."""
    directory = prepared(planned, do, {"classifier": {"epochs": 1}})
    train(stage_at(directory))
    plain = metrics(directory), (directory / "model.safetensors").read_bytes()
    (directory / "resume" / "checkpoint.pt").unlink()
    original = Cam.losses

    def observes_after_the_first_step(self: Cam, model: Any, batch: Any, progress: Any) -> Any:
        if progress.step:
            self.observe(share=torch.tensor(0.25 * progress.step, requires_grad=True))
        return original(self, model, batch, progress)

    monkeypatch.setattr(Cam, "losses", observes_after_the_first_step)
    train(stage_at(directory))
    frame = metrics(directory)
    assert list(frame["observed.share"]) == [pytest.approx((0.25 + 0.5) / 2)]
    pd.testing.assert_frame_equal(frame.drop(columns="observed.share"), plain[0])
    assert (directory / "model.safetensors").read_bytes() == plain[1]


def test_the_total_of_an_epoch_in_which_a_term_began_is_the_mean_of_what_was_minimised(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = prepared(planned, do, {"classifier": {"epochs": 1}})
    original = Cam.losses

    def begins_at_the_last_step(self: Cam, model: Any, batch: Any, progress: Any) -> Any:
        late = {"late": torch.tensor(3.0)} if progress.step == 2 else {}
        return {**original(self, model, batch, progress), **late}

    monkeypatch.setattr(Cam, "losses", begins_at_the_last_step)
    train(stage_at(directory))
    frame = metrics(directory)
    assert frame["late"].item() == pytest.approx(3)
    assert frame["total"].item() == pytest.approx(frame["classification"].item() + 3 / 3)
