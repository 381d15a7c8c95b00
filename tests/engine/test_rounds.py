"""Rounds of pseudo labels amid a training: at the right epochs, of the model as it is then, whole, and the same after a kill."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import metrics, prepared, stage_at

from wsss_core.config import Cams, OwnLabels
from wsss_core.data.images import read_image, read_mask, save_mask
from wsss_core.data.index import read_index
from wsss_core.data.mask_sets import read_mask_of, round_archive
from wsss_core.engine import cams, loop, rounds
from wsss_core.engine.cams import multiscale_cams, normalise_cams
from wsss_core.engine.models import load_model
from wsss_core.engine.rounds import Moment
from wsss_core.errors import UserError
from wsss_core.evaluate.confusion import segmentation_metrics
from wsss_core.files import read_json
from wsss_core.plan import Plan
from wsss_core.refine.crf import crf_labels
from wsss_core.refine.pseudo import make_mask
from wsss_core.refine.scores import upsample
from wsss_core.report.figures import write_figures
from wsss_core.report.gallery import write_gallery
from wsss_core.results import collect
from wsss_core.stages.evaluate import count_masks
from wsss_core.stages.train import train
from wsss_core.store import ScoreWriter
from wsss_core.systems import make_system
from wsss_core.systems.isim import Isim

ISIM: dict[str, Any] = {
    "system": "isim",
    "epochs": 5,
    "class_epochs": 1,
    "regenerate": 2,
    "schedule": "constant",
    "warmup": 0,  # a share of all steps: a shorter training would have another
    "labels": {"scales": [1.0]},
}
Planned = Callable[..., Plan]
Do = Callable[[Plan, str], Path]


def rounds_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((directory / "rounds").glob("*"))}


def outcome(directory: Path) -> tuple[dict[str, bytes], bytes, str]:
    return rounds_in(directory), (directory / "model.safetensors").read_bytes(), metrics(directory).to_csv()


@pytest.mark.parametrize(
    "labels",
    [
        {"scales": [0.5, 1.0], "threshold": 0.2, "crf": "labels"},
        {"scales": [1.0], "flip": False, "resize": 96, "crf": "none", "threshold": 0.4},
    ],
)
def test_labels_are_made_at_their_epochs_of_the_model_as_it_is_then(planned: Planned, do: Do, labels: dict[str, Any]) -> None:
    """By hand: the model of a training that ends there, its maps, cut, refined by the CRF."""
    own = {**ISIM, "labels": {**labels, "recalibrate": False}}
    config = Cams(**{key: labels[key] for key in ("scales", "flip", "resize") if key in labels})
    directory = prepared(planned, do, {"classifier": own})
    train(stage_at(directory))
    assert list(rounds_in(directory)) == ["epoch-0001.zip", "epoch-0003.zip"]
    history = metrics(directory)
    assert history["segmentation"].isna().tolist() == [True, False, False, False, False]
    index = read_index(stage_at(directory).input("data"), None)
    for epoch in (1, 3):
        shorter = prepared(planned, do, {"classifier": {**own, "epochs": max(epoch, 2)}})
        if epoch == 1:  # no shorter training than two epochs is allowed: stop one after its first
            with contextlib.suppress(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
                patch.setattr(rounds, "make_round", _interrupt)
                train(stage_at(shorter))
            trained = _from_checkpoint(shorter)
        else:
            train(stage_at(shorter))
            trained = load_model(shorter)
        found = []
        for record in index.split("train"):
            image = read_image(index.image_path(record))
            maps, _ = multiscale_cams(trained, image, config)
            maps = normalise_cams(maps[[c - 1 for c in record.labels]]) if record.labels else maps[:0]
            maps = (
                np.stack([upsample(m[None].astype(np.float16).astype(np.float32), image.shape[:2])[0] for m in maps]) if len(maps) else maps
            )
            best = np.zeros(image.shape[:2], int)
            if len(maps):
                best = np.where(maps.max(axis=0) > labels["threshold"], maps.argmax(axis=0) + 1, 0)
                best = best if labels.get("crf") == "none" else crf_labels(image, best, len(maps) + 1)
            expected = np.array([0, *record.labels])[best]
            made = read_mask_of(round_archive(directory, epoch), record.id, index.num_classes)
            assert (made == expected).mean() > 0.999, (epoch, record.id)
            found.append(made.any())
        assert any(found)


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def _from_checkpoint(directory: Path) -> Any:
    """The model of a training that has not ended."""
    from wsss_core.engine.models import TrainedModel
    from wsss_core.systems import make_system

    index = read_index(stage_at(directory).input("data"), None)
    system = make_system(stage_at(directory).parameters, index.num_classes, "test")
    model = system.build()
    model.load_state_dict(torch.load(directory / "resume" / "checkpoint.pt", weights_only=True)["model"])
    return TrainedModel(system, model.eval(), index.classes)


def dies(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, interrupted at one of its calls."""
    calls = iter(range(1, 1000))

    def dying(*arguments: Any, **keys: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **keys)

    return dying


PHASES = {
    # what is interrupted, at which call, what is there of rounds then
    "the class epoch": (Isim, "losses", 2, 0),
    "the first round's statistics": (loop.Fit, "_on_device", 5, 0),
    "the first round's maps": (cams, "multiscale_cams", 7, 0),
    "the first round's masks": (rounds, "make_mask", 4, 0),
    "packing the first round": (rounds, "pack_masks", 1, 0),
    "clearing up after the first round": (rounds, "shutil", 1, 1),
    "the epoch after the first round": (Isim, "losses", 5, 1),
    "the epoch after that": (Isim, "losses", 8, 1),
    "the second round's masks": (rounds, "make_mask", 12 + 5, 1),
    "the last epoch": (Isim, "losses", 14, 2),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_killed_in_any_phase_ends_the_same(planned: Planned, do: Do, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    monkeypatch.setattr(cams, "_SHARD", 4)
    directory = prepared(planned, do, {"classifier": ISIM})
    train(stage_at(directory))
    undisturbed = outcome(directory)
    assert len(undisturbed[0]) == 2
    for path in (directory / "rounds", directory / "resume"):
        shutil.rmtree(path)
    (directory / "model.safetensors").unlink()
    place, name, call, there = PHASES[phase]
    original = getattr(place, name)
    monkeypatch.setattr(place, name, SimpleNamespace(rmtree=dies(original.rmtree, call)) if name == "shutil" else dies(original, call))
    with pytest.raises(KeyboardInterrupt):
        train(stage_at(directory))
    if "maps" in phase:
        assert len(list((directory / "resume").glob("round-0001/maps-0-of-1/shard-*.h5"))) == 1
    assert len(rounds_in(directory)) == there and not (directory / "model.safetensors").exists()
    monkeypatch.setattr(place, name, original)
    train(stage_at(directory))
    assert outcome(directory) == undisturbed


def test_the_training_learns_from_the_latest_round(planned: Planned, do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes in each round's targets, when every round is made to hold one class alone: that of its number."""
    directory = prepared(planned, do, {"classifier": {**ISIM, "class_epochs": 0}})
    seen: dict[int, set[int]] = {}
    original, packed = Isim.losses, rounds.pack_masks

    def watching(self: Isim, model: Any, batch: Any, progress: Any) -> Any:
        seen.setdefault(progress.epoch, set()).update(batch["target"].unique().tolist())
        return original(self, model, batch, progress)

    def pack_one_class(masks: Path, ids: list[str], archive: Path) -> None:
        for image_id in ids:
            save_mask(masks / f"{image_id}.png", np.full((64, 64), 1 + int(archive.stem[-1]) // 2, np.uint8))
        packed(masks, ids, archive)

    monkeypatch.setattr(Isim, "losses", watching)
    monkeypatch.setattr(rounds, "pack_masks", pack_one_class)
    train(stage_at(directory))
    assert {epoch: classes - {255} for epoch, classes in seen.items()} == {0: {1}, 1: {1}, 2: {2}, 3: {2}, 4: {3}}


def test_a_new_training_does_not_take_the_rounds_of_an_earlier_one(planned: Planned, do: Do) -> None:
    directory = prepared(planned, do, {"classifier": ISIM})
    train(stage_at(directory))
    undisturbed = outcome(directory)
    for archive in (directory / "rounds").iterdir():
        archive.write_bytes(b"of another training")
    shutil.rmtree(directory / "resume")
    train(stage_at(directory))
    assert outcome(directory) == undisturbed


def _in_a_process(rank: int, place: str) -> None:
    """One of two: its model has statistics of its own."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    with torch.no_grad():
        model[1].running_mean.fill_(rank + 1)
    rounds.share_buffers(model, 2)
    torch.save(model[1].running_mean, f"{place}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_all_processes_make_labels_with_the_first_ones_statistics(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(_in_a_process, (str(tmp_path),), nprocs=2, start_method="fork")
    assert [torch.load(tmp_path / f"{rank}.pt").tolist() for rank in (0, 1)] == [[1, 1], [1, 1]]


def test_processes_share_the_images(planned: Planned, do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two, one after the other, with a fabric that only counts: each makes its own masks, the first one packs them."""
    directory = prepared(planned, do, {"classifier": ISIM})
    stage = stage_at(directory)
    index = read_index(stage.input("data"), None)
    system = make_system(stage.parameters, index.num_classes, "test")
    torch.manual_seed(0)
    model = system.build()
    monkeypatch.setattr(rounds, "share_buffers", lambda model, processes: None)
    made: list[list[str]] = []
    original = rounds.write_scores
    monkeypatch.setattr(rounds, "write_scores", lambda *a, **k: made.append([record.id for record in a[3]]) or original(*a, **k))
    for rank in (1, 0):
        fabric: Any = SimpleNamespace(
            global_rank=rank, world_size=2, is_global_zero=rank == 0, device="cpu", barrier=lambda: None, all_reduce=lambda x, reduce_op: x
        )
        rounds.make_round(Moment(model, index, [], stage, fabric), system, OwnLabels(scales=(1.0,), recalibrate=False), 0)
    ids = [record.id for record in index.split("train")]
    assert made == [ids[1::2], ids[::2]]
    assert all(read_mask_of(round_archive(directory, 0), image_id).shape == (64, 64) for image_id in ids)


def test_a_finished_round_is_not_made_again(planned: Planned, do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = prepared(planned, do, {"classifier": ISIM})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Isim, "losses", dies(Isim.losses, 5))
        train(stage_at(directory))
    made: list[int] = []
    original = rounds.make_round
    monkeypatch.setattr(rounds, "make_round", lambda *a: made.append(a[3]) or original(*a))
    train(stage_at(directory))
    assert made == [3]


def test_a_round_that_is_gone_is_an_error(planned: Planned, do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = prepared(planned, do, {"classifier": ISIM})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Isim, "losses", dies(Isim.losses, 8))
        train(stage_at(directory))
    (directory / "rounds" / "epoch-0001.zip").unlink()
    with pytest.raises(UserError, match=r"epoch-0001\.zip: missing, and the model it was made of is gone; remove .* to train anew"):
        train(stage_at(directory))


@pytest.mark.parametrize(("workers", "threads"), [(2, 1), (0, 2)])
def test_worker_processes_change_nothing(planned: Planned, do: Do, workers: int, threads: int) -> None:
    """Those that load samples outlive a round; those of the CRF come and go."""
    results = []
    for count, processes in ((0, 1), (workers, threads)):
        directory = prepared(planned, do, {"classifier": ISIM, "run": {"workers": count}})
        stage = stage_at(directory, threads=1)
        stage.threads = processes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "set_num_threads", lambda count: None)  # threads of sums are another matter
            train(stage)
        results.append(outcome(directory))
        for path in (directory / "rounds", directory / "resume"):
            shutil.rmtree(path)
    assert results[0] == results[1]


def test_rounds_on_convergence_are_made_and_resumed(planned: Planned, do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {**ISIM, "regenerate": "converged", "patience": 1, "lr": 1e-9}
    directory = prepared(planned, do, {"classifier": own})
    train(stage_at(directory))
    undisturbed = outcome(directory)
    # Nothing is learned at this rate: the first row after a round is its least, the second is no fall.
    assert list(undisturbed[0]) == ["epoch-0001.zip", "epoch-0003.zip"]
    shutil.rmtree(directory / "rounds")
    shutil.rmtree(directory / "resume")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Isim, "losses", dies(Isim.losses, 11))
        train(stage_at(directory))
    train(stage_at(directory))
    assert outcome(directory) == undisturbed


@pytest.mark.parametrize(
    ("labels", "rule"), [({}, "argmax"), ({"threshold": 0.3, "crf": "labels"}, "fixed"), ({"threshold": "auto", "crf": "none"}, "auto")]
)
def test_rounds_are_judged_and_shown(planned: Planned, do: Do, tmp_path: Path, labels: dict[str, Any], rule: str) -> None:
    own = {**ISIM, "class_epochs": 0, "regenerate": 3, "labels": {"scales": [1.0], **labels}}
    plan = planned({"classifier": own, "refine": {"method": "none"}, "segmenter": None})
    chain = plan.chains[0]
    assert [name for name in chain.evaluations if name.startswith("pseudo-")] == ["pseudo-epoch0", "pseudo-epoch3"]
    for name in chain.all_stages:
        do(plan, name)
    judged = read_json(plan.directory(chain.evaluations["pseudo-epoch3"]) / "figures.json")
    assert judged["protocol"]["epoch"] == 3 and judged["protocol"]["crf"] == labels.get("crf", "vitpcm") and judged["split"] == "train"
    index = read_index(plan.directory(chain.stages["data"]), None)
    place = round_archive(plan.directory(chain.stages["classifier"]), 3)
    assert judged["figures"][0]["miou"] == segmentation_metrics(count_masks(index, place, index.split("train")).confusion)["miou"]
    (figure,) = judged["figures"]
    chosen = read_json(place.with_suffix(".json"))["threshold"] if rule == "auto" else labels.get("threshold")
    assert (figure["rule"], figure["threshold"]) == (rule, chosen) and 0 < figure["miou"] < 1
    record = collect(plan.chain_spec_path(chain))
    names = {path.name for path in write_figures([record], tmp_path / "figures")}
    assert {"own_labels_over_training.svg", "own_labels_over_training.png"} <= names and "cams_over_training.svg" not in names
    write_gallery(record, tmp_path / "gallery", 2, 0)
    assert len(list((tmp_path / "gallery" / "train").glob("*.png"))) == 2
    manifest = read_json(plan.directory(chain.stages["classifier"]) / "manifest.json")
    assert {"rounds/epoch-0000.zip", "rounds/epoch-0003.zip"} <= set(manifest["outputs"])


def run_of(directory: Path, model: torch.nn.Module, batches: Callable[[], Any] = tuple) -> Moment:
    """What the loop of one process would hand over between epochs."""
    stage = stage_at(directory)
    index = read_index(stage.input("data"), None)
    fabric: Any = SimpleNamespace(
        global_rank=0, world_size=1, is_global_zero=True, device="cpu", barrier=lambda: None, all_reduce=lambda x, reduce_op: x
    )
    return Moment(model, index, [], stage, fabric, batches)


@pytest.mark.parametrize(
    ("labels", "stages"),
    [
        ({}, {}),
        ({"crf": "soft"}, {"refine": {"crf": "soft"}}),
        ({"threshold": 0.3, "crf": "muscle"}, {"refine": {"background": 0.3, "crf": "muscle"}}),
        ({"threshold": "auto", "crf": "labels"}, {"refine": {"method": "none"}, "pseudo": {"crf": "labels"}}),
        ({"threshold": 0.3, "crf": "none"}, {"refine": {"method": "none"}, "pseudo": {"threshold": 0.3}}),
    ],
)
def test_a_rounds_labels_are_what_the_stages_make_of_the_same_model(
    planned: Planned, do: Do, labels: dict[str, Any], stages: dict[str, Any]
) -> None:
    """The defaults of a round are those of the pipeline: Otsu's background and the CRF `vitpcm`."""
    plan = planned({**stages, "cams": {"scales": [1.0]}, "segmenter": None})
    masks = do(plan, "pseudo") / "masks"
    directory = plan.directory(plan.chains[0].stages["classifier"])
    trained = load_model(directory)
    run = run_of(directory, trained.model)
    rounds.make_round(run, trained.system, OwnLabels(scales=(1.0,), recalibrate=False, **labels), 7)
    archive, shown = round_archive(directory, 7), set()
    for record in run.index.split("train"):
        made = read_mask_of(archive, record.id, run.index.num_classes)
        assert np.array_equal(made, read_mask(masks / f"{record.id}.png")), record.id
        shown |= set(np.unique(made))
    assert shown > {0}
    assert archive.with_suffix(".json").exists() == (labels.get("threshold") == "auto")
    if labels.get("threshold") == "auto":
        chosen = plan.directory(plan.chains[0].stages["cams-threshold"])
        assert read_json(archive.with_suffix(".json")) == read_json(chosen / "threshold.json")


def test_each_image_can_have_its_own_threshold(tmp_path: Path) -> None:
    """Maps of two heights: what parts the values of the one is nothing for the other."""
    with ScoreWriter(tmp_path / "scores.h5", 3) as writer:
        for number, low in enumerate((0.1, 0.6)):
            scores = np.full((1, 8, 8), low, np.float32)
            scores[:, :4] = low + 0.3
            writer.add(str(number), scores, np.array([2], np.int32), (8, 8))
        writer.add("none", np.zeros((0, 8, 8), np.float32), np.zeros(0, np.int32), (8, 8))
    for name, rows in (("0", 4), ("1", 4), ("none", 0)):
        pixels = make_mask(tmp_path / "scores.h5", tmp_path / "masks", {"threshold": "otsu", "crf": "none"}, (name, tmp_path))
        assert pixels[[0, 2]].tolist() == [64 - 8 * rows, 8 * rows]


def untrained(planned: Planned, do: Do, **own: Any) -> tuple[Path, Isim, Any]:
    """Directory, system and model of a training that has not begun."""
    directory = prepared(planned, do, {"classifier": {**ISIM, **own}})
    stage = stage_at(directory)
    index = read_index(stage.input("data"), None)
    system = make_system(stage.parameters, index.num_classes, "test")
    assert isinstance(system, Isim)
    torch.manual_seed(0)
    return directory, system, system.build()


def batches_of(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [{"image": torch.randn(4, 3, 64, 64, generator=generator) * (1 + i)} for i in range(count)]


def test_recalibrated_statistics_are_those_of_the_batches(planned: Planned, do: Do) -> None:
    directory, _, model = untrained(planned, do)
    batches, before = batches_of(3), {name: value.clone() for name, value in model.state_dict().items()}
    made = rounds.recalibrated(run_of(directory, model, lambda: batches), 0, "test")
    layers = {name: layer for name, layer in model.features.named_modules() if isinstance(layer, torch.nn.BatchNorm2d)}
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].append((inputs[0].mean(dim=(0, 2, 3)), inputs[0].transpose(0, 1).flatten(1).var(dim=1)))
        )
    model.train()
    with torch.no_grad():
        for batch in batches:
            copy.deepcopy(model)(batch["image"])
    assert len(layers) > 3
    for name, statistics in seen.items():
        layer = made.features.get_submodule(name)
        assert layer.momentum == layers[name].momentum is not None
        for found, of_batches in zip((layer.running_mean, layer.running_var), zip(*statistics, strict=True), strict=True):
            torch.testing.assert_close(found, torch.stack(of_batches).mean(dim=0), rtol=1e-4, atol=1e-5)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), "the training goes on with what it had"


@pytest.mark.parametrize("recalibrate", [True, False])
def test_labels_do_not_depend_on_statistics_that_lag_behind(planned: Planned, do: Do, recalibrate: bool) -> None:
    directory, system, model = untrained(planned, do)
    labels, archives = OwnLabels(scales=(1.0,), threshold=0.3, crf="none", recalibrate=recalibrate), []
    for epoch, lag in enumerate((0.0, 2.0)):
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.running_mean.add_(lag)
        torch.manual_seed(epoch)
        rounds.make_round(run_of(directory, model, lambda: batches_of(3)), system, labels, epoch)
        archives.append(round_archive(directory, epoch))
    index = read_index(stage_at(directory).input("data"), None)
    pairs = [[read_mask_of(archive, record.id, index.num_classes) for archive in archives] for record in index.split("train")]
    assert all(np.array_equal(*pair) for pair in pairs) == recalibrate
    assert any(pair[0].any() for pair in pairs)


@pytest.mark.parametrize("crf", ["none", "vitpcm"])
def test_frozen_statistics_stay_those_of_the_weights_in_a_round(planned: Planned, do: Do, crf: str) -> None:
    """They are not made anew, and above all not reset: the labels are those of the model as it is."""
    directory, system, model = untrained(planned, do, freeze_batch_norm=True)
    with torch.no_grad():
        for layer in model.features.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 4)
    archives = [round_archive(directory, epoch) for epoch in (0, 1)]
    for epoch, recalibrate in enumerate((True, False)):
        labels = OwnLabels(scales=(1.0,), threshold=0.3, crf=crf, recalibrate=recalibrate)  # type: ignore[arg-type]
        rounds.make_round(run_of(directory, model, lambda: batches_of(2)), system, labels, epoch)
    index = read_index(stage_at(directory).input("data"), None)
    pairs = [[read_mask_of(archive, record.id, index.num_classes) for archive in archives] for record in index.split("train")]
    assert all(np.array_equal(*pair) for pair in pairs) and any(pair[0].any() for pair in pairs)


def test_new_statistics_cost_no_pass_where_there_are_none(planned: Planned, do: Do) -> None:
    """ConvNeXt normalises by layer; the decoder's batch normalisation no map needs."""
    directory, _, _ = untrained(planned, do)
    model = torch.nn.ModuleDict({"features": torch.nn.LayerNorm(3), "decoder": torch.nn.BatchNorm2d(3)})
    taken: list[int] = []
    rounds.recalibrated(run_of(directory, model, lambda: ({"image": taken.append(i)} for i in range(2))), 0, "test")
    assert not taken


def test_a_round_leaves_the_random_stream_of_the_training_alone(planned: Planned, do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same labels with and without new statistics: then the same training."""
    results = []
    monkeypatch.setattr(rounds, "make_mask", partial(_one_mask, rounds.make_mask))
    for recalibrate in (True, False):
        directory = prepared(planned, do, {"classifier": {**ISIM, "labels": {"scales": [1.0], "recalibrate": recalibrate}}})
        train(stage_at(directory))
        results.append(outcome(directory))
    assert results[0] == results[1]


def _one_mask(original: Callable[..., Any], source: Path, folder: Path, parameters: dict[str, Any], item: tuple[str, Path]) -> Any:
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 1
    folder.mkdir(parents=True, exist_ok=True)
    save_mask(folder / f"{item[0]}.png", mask)
    return original(source, folder, parameters, item)


def test_a_system_without_rounds_makes_none(planned: Planned, do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "make_round", partial(pytest.fail, "made"))
    directory = prepared(planned, do, {"classifier": {"epochs": 1}})
    train(stage_at(directory))
    assert not (directory / "rounds").exists()
