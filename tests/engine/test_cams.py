"""Class activation maps: the protocol against a loop, what is kept, resuming."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import stage_at
from torch.nn import functional

from wsss_core.config import Cams
from wsss_core.data.images import read_image
from wsss_core.data.index import read_index
from wsss_core.data.transforms import normalise
from wsss_core.engine import cams as cams_module
from wsss_core.engine.cams import multiscale_cams, normalise_cams
from wsss_core.engine.classifier import classify, image_embeddings
from wsss_core.engine.models import load_model
from wsss_core.files import read_json
from wsss_core.plan import Plan
from wsss_core.stages.cams import write_cams
from wsss_core.store import ScoreStore


@pytest.fixture
def ready(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> Callable[..., tuple[Plan, Path]]:
    """A trained classifier and the directory of the cams stage above it."""

    def make(changes: dict[str, Any] | None = None) -> tuple[Plan, Path]:
        plan = planned({"classifier": {"epochs": 1}, **(changes or {})})
        do(plan, "classifier")
        return plan, plan.directory(plan.chains[0].stages["cams"])

    return make


def test_maps_are_summed_over_scales_and_flips(ready: Callable[..., tuple[Plan, Path]]) -> None:
    plan, _ = ready()
    trained = load_model(plan.directory(plan.chains[0].stages["classifier"]))
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    maps, scores = multiscale_cams(trained, image, Cams(scales=(1.0, 0.5), flip=True, stride=4))

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (trained.system.mean, trained.system.std))
    pixels = ((torch.from_numpy(image).permute(2, 0, 1).float() / 255 - mean) / std)[None]
    small = functional.interpolate(pixels, size=(25, 35), mode="bilinear", align_corners=False, antialias=True)
    total, logits = torch.zeros(3, 13, 18), []
    with torch.no_grad():
        for inputs in (pixels, small):
            for flipped in (False, True):
                out = trained.model(inputs.flip(-1) if flipped else inputs)
                logits.append(out.mean(dim=(2, 3))[0])
                resized = functional.interpolate(functional.relu(out), size=(13, 18), mode="bilinear", align_corners=False)[0]
                total += resized.flip(-1) if flipped else resized
    np.testing.assert_allclose(maps, total.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, torch.stack(logits).mean(0).sigmoid().numpy(), rtol=1e-4, atol=1e-5)


def test_normalised_maps_reach_one_and_empty_ones_stay_zero() -> None:
    maps = normalise_cams(np.stack([np.full((2, 3), 4.0), np.zeros((2, 3))]))
    np.testing.assert_allclose(maps[0], 1, atol=1e-4)
    assert not maps[1].any()
    assert normalise_cams(np.zeros((0, 2, 3))).shape == (0, 2, 3)


def test_the_store_holds_the_labelled_classes_of_every_training_image(ready: Callable[..., tuple[Plan, Path]]) -> None:
    plan, directory = ready()
    write_cams(stage_at(directory))
    index = read_index(plan.directory(plan.chains[0].stages["data"]), None)
    with ScoreStore(directory / "scores.h5") as store:
        assert store.ids == [record.id for record in index.split("train")]
        for record in index.split("train"):
            scores, classes = store.read(record.id)
            assert tuple(classes) == record.labels
            assert scores.shape == (len(record.labels), 16, 16)
            assert store.size(record.id) == (64, 64)
            assert scores.size == 0 or (scores.min() >= 0 and scores.max() <= 1)


def test_images_without_labels_keep_what_the_classifier_predicts(ready: Callable[..., tuple[Plan, Path]]) -> None:
    _, directory = ready({"cams": {"classes": "predicted"}})
    write_cams(stage_at(directory))
    with ScoreStore(directory / "scores.h5") as store:
        for (_, _, classes), scores in zip(store, store.extra("score"), strict=True):
            assert list(classes) == [c + 1 for c in range(3) if scores[c] > 0.5]


def test_a_killed_stage_goes_on_after_its_last_shard(ready: Callable[..., tuple[Plan, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    _, directory = ready()
    monkeypatch.setattr(cams_module, "_SHARD", 4)
    write_cams(stage_at(directory))
    undisturbed = (directory / "scores.h5").read_bytes()
    (directory / "resume" / "shard-0000004.h5").unlink()
    calls = []
    original = multiscale_cams
    monkeypatch.setattr(cams_module, "multiscale_cams", lambda *a: calls.append(1) or original(*a))
    write_cams(stage_at(directory))
    assert len(calls) == 4
    with ScoreStore(directory / "scores.h5") as store:
        assert len(store) == 12
    assert (directory / "scores.h5").read_bytes() == undisturbed


def test_classify_gives_probabilities_and_labels(ready: Callable[..., tuple[Plan, Path]]) -> None:
    plan, directory = ready()
    index = read_index(plan.directory(plan.chains[0].stages["data"]), None)
    scores, labels, embeddings = classify(stage_at(directory), index, "val")
    assert scores.shape == labels.shape == (6, 3)
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_array_equal(labels, [index.multi_hot(record) for record in index.split("val")])
    assert embeddings is not None and len(embeddings) == 6


def test_embeddings_are_what_the_image_contrast_compares(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    terms = {"image_from": 0, "pixel_from": 0, "region_from": 0}
    plan = planned({"classifier": {"system": "mcl", "crop_pair": 48, "output_stride": 8, "epochs": 1, **terms}})
    classifier, index = do(plan, "classifier"), read_index(do(plan, "data"), None)
    embeddings = classify(stage_at(plan.directory(plan.chains[0].stages["cams"])), index, "val").embeddings
    trained = load_model(classifier)
    images = [normalise(read_image(index.image_path(record)), trained.system.mean, trained.system.std) for record in index.split("val")]
    with torch.inference_mode(), image_embeddings(trained.model) as collected:
        expected = [trained.model(image[None]).embeddings for image in images]
    np.testing.assert_allclose(embeddings, torch.cat(expected), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(collected), embeddings, rtol=1e-5, atol=1e-6)
    trained.model(images[0][None])
    assert len(collected) == 6  # what comes after the block is not collected


def test_a_network_without_a_backbone_has_no_embeddings() -> None:
    with image_embeddings(torch.nn.Linear(2, 2)) as collected:
        assert collected == []


@pytest.mark.parametrize("system", ["cam", "rsa_cfc"])
def test_cams_of_a_snapshot_are_those_of_the_model_as_it_was(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], system: str
) -> None:
    plan = planned({"classifier": {"system": system, "epochs": 3, "snapshots": [1, 2]}})
    classifier, index = do(plan, "classifier"), read_index(do(plan, "data"), None)
    stores = {name: do(plan, name) / "scores.h5" for name in ("cams-epoch1", "cams-epoch2", "cams")}
    models = {name: classifier / "snapshots" / f"epoch-000{name[-1]}" for name in stores if name != "cams"}
    read: dict[str, list[np.ndarray]] = {}
    for name, path in stores.items():
        trained, read[name] = load_model(models.get(name, classifier)), []
        with ScoreStore(path) as store:
            for record, extra in zip(index.split("train"), store.extra("score"), strict=True):
                scores, classes = store.read(record.id)
                maps, probabilities = multiscale_cams(trained, read_image(index.image_path(record)), Cams(scales=(1.0, 0.5)))
                np.testing.assert_allclose(scores, normalise_cams(maps[[c - 1 for c in classes]]), rtol=0, atol=1e-3)
                np.testing.assert_allclose(extra, probabilities, rtol=1e-5)
                read[name].append(extra)
    assert not any(np.allclose(read[one], read[other], atol=1e-3) for one, other in itertools.combinations(read, 2))
    figures = {name: read_json(do(plan, f"evaluate-{name}") / "figures.json") for name in stores}
    for name in models:
        assert figures[name]["subject"] == "cams" and figures[name]["protocol"]["epoch"] == int(name[-1])
        assert figures[name]["figures"] != figures["cams"]["figures"]
        number = read_json(do(plan, f"{name}-threshold") / "threshold.json")["threshold"]
        assert figures[name]["figures"][0]["threshold"] == number
    assert "epoch" not in figures["cams"]["protocol"]
