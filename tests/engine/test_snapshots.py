"""Copies of a model that are kept during its training: the right ones, whole, also after a kill, and the training does not notice."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import metrics, prepared, stage_at

from wsss_core.engine import loop
from wsss_core.engine.models import load_model, snapshot_directory
from wsss_core.files import read_json
from wsss_core.plan import Plan
from wsss_core.stage import run_stage
from wsss_core.stages.train import train
from wsss_core.systems.cam import Cam


def snapshots_in(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.glob("snapshots/**/*")) if path.is_file()}


@pytest.mark.parametrize("system", ["cam", "rsa_cfc"])
def test_a_snapshot_is_the_model_after_its_epoch(planned: Callable[..., Plan], do: Callable[[Plan, str], Path], system: str) -> None:
    """At a constant learning rate and weight, a shorter training ends where a longer one passes."""
    own = {"system": system, "schedule": "constant", "warmup": 0, **({"ramp": 0} if system == "rsa_cfc" else {})}
    directory = prepared(planned, do, {"classifier": {**own, "epochs": 4, "snapshots": [1, 3]}})
    train(stage_at(directory))
    kept = snapshots_in(directory)
    files = ("model.json", "model.safetensors")
    assert list(kept) == [f"snapshots/epoch-{epoch:04d}/{file}" for epoch in (1, 3) for file in files]
    for epochs in (1, 3, 4):
        shorter = prepared(planned, do, {"classifier": {**own, "epochs": epochs}})
        train(stage_at(shorter))
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
        train(stage_at(directory))
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
    train(stage_at(directory))
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
        train(stage_at(directory))
    monkeypatch.setattr(loop, "atomic_path", original)
    assert torch.load(directory / "resume" / "checkpoint.pt")["epoch"] == (1 if when == "before" else 2)
    if when == "before":
        (snapshot_directory(directory, 2) / "model.safetensors").write_bytes(b"of a disk that was full")
    train(stage_at(directory))
    assert (snapshots_in(directory), (directory / "model.safetensors").read_bytes()) == undisturbed


def test_a_stage_without_one_of_its_snapshots_is_not_complete(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    plan = planned({"classifier": {"epochs": 2, "snapshots": [1]}})
    directory = do(plan, "classifier")
    lost = snapshot_directory(directory, 1) / "model.safetensors"
    before = lost.read_bytes()
    lost.unlink()
    run_stage(directory / "spec.json", ("classifier",), train, threads=1)
    assert lost.read_bytes() == before
