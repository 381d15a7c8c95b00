"""The training loop on tiny made images: repeatable, resumable, honest about trouble."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import stage_at
from safetensors.torch import load_file

from wsss_core.engine import loop
from wsss_core.engine.models import load_model, snapshot_directory
from wsss_core.errors import UserError
from wsss_core.files import read_json
from wsss_core.plan import Plan
from wsss_core.stages import run_stage
from wsss_core.systems.boundary import BoundarySystem
from wsss_core.systems.cam import Cam


def metrics(directory: Path) -> pd.DataFrame:
    return pd.read_csv(directory / "metrics.csv").drop(columns="images_per_second")


def prepared(planned: Callable[..., Plan], do: Callable[[Plan, str], Path], changes: dict[str, Any] | None = None) -> Path:
    plan = planned(changes)
    do(plan, "data")
    return plan.directory(plan.chains[0].stages["classifier"])


def test_the_same_seed_gives_the_same_bytes(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    directory = prepared(planned, do)
    results = []
    for _ in range(2):
        loop.train(stage_at(directory))
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
        loop.train(stage_at(directory))
        models.append(load_file(directory / "model.safetensors"))
    assert not torch.equal(models[0]["classifier.weight"], models[1]["classifier.weight"])


def test_workers_change_nothing(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    results = []
    for workers in (0, 2):
        directory = prepared(planned, do, {"run": {"workers": workers}, "classifier": {"epochs": 1}})
        loop.train(stage_at(directory))
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
            original = loop._Fit._epoch

            def dies_in_the_second_epoch(self: Any, epoch: int, original: Any = original) -> Any:
                if epoch == 1:
                    raise KeyboardInterrupt
                return original(self, epoch)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(loop._Fit, "_epoch", dies_in_the_second_epoch)
                with pytest.raises(KeyboardInterrupt):
                    loop.train(stage_at(directory))
        loop.train(stage_at(directory))
        results.append((directory / "model.safetensors").read_bytes())
        (directory / "resume" / "checkpoint.pt").unlink()
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_killed_training_resumes_and_ends_the_same(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    directory = prepared(planned, do, {"classifier": {"epochs": 3, "optimizer": optimizer}})
    loop.train(stage_at(directory))
    undisturbed = metrics(directory), (directory / "model.safetensors").read_bytes()
    (directory / "resume" / "checkpoint.pt").unlink()

    steps = iter(range(100))
    original = Cam.losses

    def dies_in_the_second_epoch(self: Cam, *arguments: Any) -> Any:
        if next(steps) == 4:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Cam, "losses", dies_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        loop.train(stage_at(directory))
    monkeypatch.setattr(Cam, "losses", original)
    assert len(metrics(directory)) == 1
    loop.train(stage_at(directory))
    pd.testing.assert_frame_equal(metrics(directory), undisturbed[0])
    assert (directory / "model.safetensors").read_bytes() == undisturbed[1]


def snapshots_in(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.glob("snapshots/**/*")) if path.is_file()}


@pytest.mark.parametrize("system", ["cam", "rsa_cfc"])
def test_a_snapshot_is_the_model_after_its_epoch(planned: Callable[..., Plan], do: Callable[[Plan, str], Path], system: str) -> None:
    """At a constant learning rate and weight, a shorter training ends where a longer one passes."""
    own = {"system": system, "schedule": "constant", **({"ramp": 0} if system == "rsa_cfc" else {})}
    directory = prepared(planned, do, {"classifier": {**own, "epochs": 4, "snapshots": [1, 3]}})
    loop.train(stage_at(directory))
    kept = snapshots_in(directory)
    files = ("model.json", "model.safetensors")
    assert list(kept) == [f"snapshots/epoch-{epoch:04d}/{file}" for epoch in (1, 3) for file in files]
    for epochs in (1, 3, 4):
        shorter = prepared(planned, do, {"classifier": {**own, "epochs": epochs}})
        loop.train(stage_at(shorter))
        of_same_age = kept[f"snapshots/epoch-{epochs:04d}/model.safetensors"] if epochs < 4 else (directory / files[1]).read_bytes()
        assert (shorter / files[1]).read_bytes() == of_same_age
        assert snapshots_in(shorter) == {} and not (shorter / "snapshots").exists()
    trained = load_model(snapshot_directory(directory, 1))
    assert trained.system.config.system == system and trained.classes[0] == "background"
    assert (directory / files[0]).read_bytes() == kept["snapshots/epoch-0001/model.json"]


def test_snapshots_leave_the_training_alone(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    results = []
    for snapshots in ([], [1, 2]):
        directory = prepared(planned, do, {"classifier": {"epochs": 3, "snapshots": snapshots}})
        loop.train(stage_at(directory))
        results.append(((directory / "model.safetensors").read_bytes(), metrics(directory).to_csv()))
    assert results[0] == results[1]


@pytest.mark.parametrize("dies", [1, 2, 3])
def test_a_resumed_training_still_has_its_snapshots(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], monkeypatch: pytest.MonkeyPatch, dies: int
) -> None:
    """Killed in the first epoch; in the second, with the first kept; in the third, while both are there."""
    plan = planned({"classifier": {"epochs": 3, "snapshots": [1, 2]}})
    directory = plan.directory(plan.chains[0].stages["classifier"])
    do(plan, "classifier")
    undisturbed, model = snapshots_in(directory), (directory / "model.safetensors").read_bytes()
    assert len(undisturbed) == 4
    for path in [*directory.glob("snapshots/**/*"), directory / "model.safetensors", directory / "manifest.json"]:
        if path.is_file():
            path.unlink()
    steps, original = iter(range(100)), Cam.losses

    def dies_in_an_epoch(self: Cam, *arguments: Any) -> Any:
        if next(steps) == 3 * dies - 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Cam, "losses", dies_in_an_epoch)
    with pytest.raises(KeyboardInterrupt):
        do(plan, "classifier")
    assert len(snapshots_in(directory)) == 2 * (dies - 1)
    monkeypatch.setattr(Cam, "losses", original)
    do(plan, "classifier")
    assert snapshots_in(directory) == undisturbed and (directory / "model.safetensors").read_bytes() == model
    assert not (directory / "resume").exists()
    outputs = read_json(directory / "manifest.json")["outputs"]
    assert set(undisturbed) < set(outputs)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_training_killed_at_a_checkpoint_loses_no_snapshot(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Before the second checkpoint, the second epoch is done again; after it, that epoch's snapshot has to be there already."""
    directory = prepared(planned, do, {"classifier": {"epochs": 3, "snapshots": [1, 2]}})
    loop.train(stage_at(directory))
    undisturbed = snapshots_in(directory), (directory / "model.safetensors").read_bytes()
    (directory / "resume" / "checkpoint.pt").unlink()
    shutil.rmtree(directory / "snapshots")
    checkpoints, original = iter(range(100)), loop.atomic_path

    @contextlib.contextmanager
    def dies_at_the_second(path: Path) -> Iterator[Path]:
        second = next(checkpoints) == 1
        if second and when == "before":
            raise KeyboardInterrupt
        with original(path) as temporary:
            yield temporary
        if second:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "atomic_path", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        loop.train(stage_at(directory))
    monkeypatch.setattr(loop, "atomic_path", original)
    assert torch.load(directory / "resume" / "checkpoint.pt")["epoch"] == (1 if when == "before" else 2)
    if when == "before":
        (snapshot_directory(directory, 2) / "model.safetensors").write_bytes(b"of a disk that was full")
    loop.train(stage_at(directory))
    assert (snapshots_in(directory), (directory / "model.safetensors").read_bytes()) == undisturbed


def test_a_stage_without_one_of_its_snapshots_is_not_complete(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    plan = planned({"classifier": {"epochs": 2, "snapshots": [1]}})
    directory = do(plan, "classifier")
    lost = snapshot_directory(directory, 1) / "model.safetensors"
    before = lost.read_bytes()
    lost.unlink()
    run_stage(directory / "spec.json", ("classifier",), loop.train, threads=1)
    assert lost.read_bytes() == before


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
    loop.train(stage_at(directory))
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
        loop.train(stage_at(directory))
    assert not (directory / "model.safetensors").exists()
    monkeypatch.setattr(BoundarySystem, "after_training", original)
    monkeypatch.setattr(loop._Fit, "_epoch", None)  # no epoch is left to do
    loop.train(stage_at(directory))
    assert (directory / "model.safetensors").read_bytes() == undisturbed


def test_accumulated_batches_step_once(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    directory = prepared(planned, do, {"classifier": {"epochs": 1, "batch_size": 2, "accumulate": 4}})
    loop.train(stage_at(directory))
    assert list(metrics(directory)["step"]) == [2]  # 6 batches: 4 and 2


def test_a_loss_that_is_not_finite_stops_the_training(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = prepared(planned, do)
    monkeypatch.setattr(Cam, "losses", lambda self, model, batch, progress: {"x": model(batch["image"]).mean() * float("nan")})
    with pytest.raises(UserError, match="the loss is nan after epoch 1; try a smaller lr"):
        loop.train(stage_at(directory))


def test_a_saved_model_is_the_trained_one(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    directory = prepared(planned, do)
    loop.train(stage_at(directory))
    trained = load_model(directory)
    assert trained.classes[0] == "background"
    assert not trained.model.training
    with torch.no_grad():
        assert trained.model(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 4, 4)


@pytest.mark.parametrize("damage", ["missing", "weights", "description"])
def test_a_damaged_model_is_one_line(planned: Callable[..., Plan], do: Callable[[Plan, str], Path], damage: str) -> None:
    directory = prepared(planned, do, {"classifier": {"epochs": 1}})
    loop.train(stage_at(directory))
    if damage == "missing":
        (directory / "model.safetensors").unlink()
    else:
        (directory / ("model.safetensors" if damage == "weights" else "model.json")).write_bytes(io.BytesIO(b"{}").read())
    with pytest.raises(UserError):
        load_model(directory)
