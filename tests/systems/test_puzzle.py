"""Puzzle-CAM: the network with its two branches, the ramp, one step of training, the test path, and both tile systems as stages."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from two_branches import HALFWAY, NETWORK, PUZZLE, by_equations, cam_system, gradients, losses_of, outputs_of, puzzle_system

from wsss_core.data.index import read_index
from wsss_core.engine.models import load_model, save_model
from wsss_core.engine.optimiser import make_optimiser
from wsss_core.files import read_json
from wsss_core.plan import Plan
from wsss_core.store import ScoreStore
from wsss_core.systems import make_system
from wsss_core.systems.base import Batch, Progress
from wsss_core.systems.puzzle import Puzzle, PuzzleNet, TwoBranches

BOTH = pytest.mark.parametrize("system", ["puzzle", "rsa_cfc"])
LABELS = torch.tensor([[1.0, 0, 1], [1, 1, 0], [0, 0, 1]])


def network(seed: int = 0, mode: bool = False) -> PuzzleNet:
    torch.manual_seed(seed)
    model = puzzle_system("puzzle").build().train(mode)
    assert isinstance(model, PuzzleNet)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # some start with a weight of 0, and nothing before them would move
                module.weight.uniform_(0.5, 1.5)
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
        model.classifier.weight.normal_(std=0.1)
    return model


def batch_of(size: tuple[int, int] = (64, 64), count: int = 3, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {"image": torch.randn(count, 3, *size, generator=generator), "label": LABELS[:count].clone()}


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def tiles_of(images: Tensor) -> Tensor:
    """The four quarters of images with a margin of zeros to even sides, tile by tile in reading order, cut by hand."""
    count, channels, height, width = images.shape
    half, across = math.ceil(height / 2), math.ceil(width / 2)
    tiles = torch.zeros(4 * count, channels, half, across)
    for tile, (top, left) in enumerate([(0, 0), (0, across), (half, 0), (half, across)]):
        part = images[:, :, top : top + half, left : left + across]
        tiles[tile * count : (tile + 1) * count, :, : part.shape[2], : part.shape[3]] = part
    return tiles


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (65, 47), (63, 64), (64, 33)])
def test_the_network_sees_the_image_and_its_quarters(size: tuple[int, int]) -> None:
    model, images = network(), batch_of(size, 2)["image"]
    before = images.clone()
    maps, tile_features, tile_maps = model(images, tiles=True)
    assert torch.equal(images, before)
    assert torch.equal(maps, model(images))
    features, _ = model.features(tiles_of(images))
    torch.testing.assert_close(tile_features, features, rtol=1e-4, atol=1e-4)
    expected = torch.einsum("gd,ndhw->nghw", model.classifier.weight[:, :, 0, 0], features)
    torch.testing.assert_close(tile_maps, expected, rtol=1e-4, atol=1e-4)
    assert maps.shape == (2, 3, *(math.ceil(side / 16) for side in size))
    assert tile_maps.shape == (8, 3, *(math.ceil(math.ceil(side / 2) / 16) for side in size))


@pytest.mark.parametrize("tiles", [(2, 3), (2, 2), (1, 1)])
def test_the_losses_are_those_of_the_equations(tiles: tuple[int, int]) -> None:
    for labels in (LABELS, LABELS * 0, torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 1]])):
        outputs = outputs_of(3, (4, 6), tiles, seed=1)
        ours, expected = losses_of(outputs, labels, system="puzzle"), by_equations(outputs, labels, 0.25, **PUZZLE)
        assert list(ours) == ["classification", "classification_tiles", "reconstruction"] == list(expected)
        for name, value in ours.items():
            assert value.item() == pytest.approx(expected[name].item(), rel=1e-5, abs=1e-7), name
        for mine, theirs in zip(gradients(ours, outputs), gradients(expected, outputs), strict=True):
            torch.testing.assert_close(mine, theirs.float(), rtol=1e-4, atol=1e-6)
        assert not gradients(ours, outputs)[1].any()  # the features count through their maps alone


@BOTH
@pytest.mark.parametrize(
    ("ramp", "weights"), [(0.5, (0, 1, 2, 2)), (0, (2, 2, 2, 2)), (1, (0, 0.5, 1, 1.8)), (0.25, (0, 2, 2, 2)), (0.3, (0, 5 / 3, 2, 2))]
)
def test_the_weight_of_the_reconstruction_rises_and_stays(system: str, ramp: float, weights: tuple[float, ...]) -> None:
    outputs = outputs_of(3, (4, 6), (2, 3))
    unit = losses_of(outputs, LABELS, system=system, beta_reconstruction=1, ramp=0)["reconstruction"].item()
    for step, weight in zip((0, 25, 50, 90), weights, strict=True):
        losses = losses_of(outputs, LABELS, Progress(7, step, 100), system, ramp=ramp)
        assert losses["reconstruction"].item() == pytest.approx(weight * unit)
        assert puzzle_system(system, ramp=ramp).beta(Progress(0, step, 100)) == pytest.approx(weight)


def test_without_a_weight_there_is_no_reconstruction() -> None:
    outputs = outputs_of(3, (4, 6), (2, 3))
    losses = losses_of(outputs, LABELS, system="puzzle", beta_reconstruction=0)
    assert list(losses) == ["classification", "classification_tiles"]
    plain = losses_of(outputs, LABELS, system="puzzle")
    assert all(torch.equal(losses[name], plain[name]) for name in losses)


@BOTH
def test_a_trained_network_has_the_tensors_of_a_plain_classifier(system: str, tmp_path: Path) -> None:
    model, plain = puzzle_system(system).build(), cam_system().build()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert shapes == {name: value.shape for name, value in plain.state_dict().items()}
    assert list(dict(model.named_parameters())) == list(dict(plain.named_parameters()))
    save_model(tmp_path, model, {"system": system, **NETWORK}, ("background", "a", "b", "c"))
    pairs = make_system({"system": "affinity", **NETWORK}, 4, "test")
    net = pairs.build()
    pairs.start(net, {"classifier": tmp_path})
    state = net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if name.startswith("features."))
    loaded = load_model(tmp_path)
    assert loaded.system.config.system == system and isinstance(loaded.model, PuzzleNet)


def stepped(system: Puzzle, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """One step of plain gradient descent with the optimiser of the package; the gradients it used, by name."""
    optimiser = make_optimiser(system.config, system.parameter_groups(model))
    total(system.losses(model, batch, HALFWAY)).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimiser.step()
    return found


@BOTH
def test_one_step_moves_all_that_trains_and_nothing_else(system: str) -> None:
    made = puzzle_system(system, optimizer="sgd", lr=0.1, head_lr_factor=3, momentum=0, weight_decay=0)
    model, batch = network(mode=True), batch_of()
    start, given = copy.deepcopy(model), {name: value.clone() for name, value in batch.items()}
    generator = torch.get_rng_state()
    found = stepped(made, model, batch)
    for name, parameter in start.named_parameters():
        rate = 0.1 if name.startswith("features.") else 0.3
        assert found[name].any(), name
        torch.testing.assert_close(model.get_parameter(name), parameter - rate * found[name], rtol=0, atol=1e-6)
    assert set(found) == {name for name, _ in start.named_parameters()}
    kinds = {name.rsplit(".")[-1] for name, _ in start.named_buffers()}
    assert kinds == {"running_mean", "running_var", "num_batches_tracked"}
    for name, value in start.named_buffers():
        assert not torch.equal(model.get_buffer(name), value), name
        if name.endswith("num_batches_tracked"):
            assert model.get_buffer(name) - value == 1, name  # the whole images
    assert all(torch.equal(batch[name], value) for name, value in given.items())
    assert torch.equal(torch.get_rng_state(), generator) and model.training


@BOTH
def test_the_running_statistics_are_those_of_whole_images(system: str) -> None:
    """Those that a step of the plain classifier leaves, though the tiles train by their own; as the published code has it: of both."""
    batch, plain = batch_of((65, 47)), cam_system()
    cam = plain.build()
    cam.load_state_dict(network().state_dict())
    plain.losses(cam.train(), batch, HALFWAY)
    expected = dict(cam.named_buffers())
    outputs = []
    for tile_statistics in (False, True):
        made, model = puzzle_system(system, tile_statistics=tile_statistics), network(mode=True)
        model.tile_statistics = tile_statistics
        outputs.append(total(made.losses(model, batch, HALFWAY)))
        found = dict(model.named_buffers())
        assert found.keys() == expected.keys()
        same = [torch.equal(value, expected[name]) for name, value in found.items()]
        assert not any(same) if tile_statistics else all(same)
        assert model.tile_statistics is made.build().tile_statistics is tile_statistics
    assert torch.equal(*outputs)


@BOTH
def test_batch_normalisation_sees_the_image_and_then_the_tiles(system: str) -> None:
    model, batch = network(mode=True), batch_of()
    model.tile_statistics = True
    name, norm = next((name, module) for name, module in model.features.named_modules() if isinstance(module, nn.BatchNorm2d))
    before, seen = norm.running_mean.clone(), []  # type: ignore[union-attr]
    handle = norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    puzzle_system(system).losses(model, batch, HALFWAY)
    handle.remove()
    assert [len(each) for each in seen] == [3, 12], name
    expected = before
    for each in seen:
        expected = 0.9 * expected + 0.1 * each.mean(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected)


@BOTH
def test_both_branches_teach_the_classifier_and_the_encoder(system: str) -> None:
    model, kept = network(mode=True), []
    for module in (model.features, model.classifier):
        module.register_forward_hook(lambda module, inputs, output: kept.append(output[0] if isinstance(output, tuple) else output))
    losses = puzzle_system(system).losses(model, batch_of(), HALFWAY)
    weight, first = model.classifier.weight, next(model.features.parameters())
    features, maps, tile_features, tile_maps = kept
    of_maps = torch.autograd.grad(total(losses), (maps, tile_maps, weight), retain_graph=True)
    by_hand = sum(torch.einsum("nghw,ndhw->gd", g, f) for g, f in zip(of_maps, (features, tile_features), strict=False))
    assert isinstance(by_hand, Tensor)
    torch.testing.assert_close(of_maps[2][:, :, 0, 0], by_hand, rtol=1e-3, atol=1e-5)
    for name, loss in losses.items():
        assert torch.autograd.grad(loss, first, retain_graph=True)[0].any(), name
    reached = torch.autograd.grad(losses["reconstruction"], (maps, tile_maps))
    assert all(each.any() for each in reached)
    for each in model(batch_of()["image"], tiles=True):
        assert torch.autograd.grad(each.square().sum(), first, retain_graph=True)[0].any()


@BOTH
@pytest.mark.parametrize(("size", "count"), [((65, 47), 3), ((63, 64), 2), ((33, 31), 3), ((64, 64), 1), ((63, 47), 1)])
def test_odd_sizes_and_single_images_train(system: str, size: tuple[int, int], count: int) -> None:
    model, batch = network(mode=True), batch_of(size, count)
    batch["label"][0] = 0
    losses = puzzle_system(system).losses(model, batch, HALFWAY)
    total(losses).backward()
    assert all(math.isfinite(value.item()) for value in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    if count == 1 and system == "rsa_cfc":
        assert losses["contrast"].item() == 0


@BOTH
@pytest.mark.parametrize("size", [(64, 64), (65, 47)])
def test_the_test_path_is_the_whole_image_alone(system: str, size: tuple[int, int]) -> None:
    made, plain, model, images = puzzle_system(system), cam_system(), network(), batch_of(size)["image"]
    cam = plain.build().eval()
    cam.load_state_dict(model.state_dict())
    seen: list[Tensor] = []
    model.features.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        ours, expected = made.cams(model, images), plain.cams(cam, images)
    assert len(seen) == 1 and seen[0] is images
    for one, other in zip(ours, expected, strict=True):
        assert torch.equal(one, other)
    assert ours[0].min() >= 0 and (model(images) < 0).any()


def test_samples_are_those_of_the_plain_classifier(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    plan = planned()
    index = read_index(do(plan, "data"), None)
    samples = []
    for system in (cam_system(), puzzle_system("puzzle"), puzzle_system("rsa_cfc")):
        torch.manual_seed(3)
        samples.append(system.load(index, {})(index.split("train")[0]))
    for other in samples[1:]:
        assert other.keys() == samples[0].keys() and all(torch.equal(other[name], samples[0][name]) for name in other)


@BOTH
def test_a_chain_trains_with_tiles_and_makes_cams(planned: Callable[..., Plan], do: Callable[[Plan, str], Path], system: str) -> None:
    plan = planned({"classifier": {"system": system}})
    cams = do(plan, "cams")
    directory = plan.directory(plan.chains[0].stages["classifier"])
    frame = pd.read_csv(directory / "metrics.csv")
    terms = ["classification", "classification_tiles", "reconstruction", *(["contrast"] if system == "rsa_cfc" else [])]
    observed = ["observed.attention_kept"] if system == "rsa_cfc" else []
    assert list(frame.columns) == ["step", "epoch", "lr", *terms, "total", *observed, "images_per_second"]
    assert all(frame[name].between(0, 1.5).all() for name in observed)
    assert np.isfinite(frame.to_numpy()).all() and (frame[terms] != 0).all(axis=None)
    np.testing.assert_allclose(frame[terms].sum(axis=1), frame["total"])
    assert read_json(directory / "model.json")["parameters"]["system"] == system
    trained = load_file(directory / "model.safetensors")
    assert trained["features.net.bn1.num_batches_tracked"] == 6
    with ScoreStore(cams / "scores.h5") as store:
        assert len(store) == 12
        assert any(scores.size and scores.max() > 0 for _, scores, _ in store)
    assert 0 <= read_json(do(plan, "evaluate-cams") / "figures.json")["figures"][0]["miou"] <= 1


def test_the_ramp_counts_steps_of_the_whole_training(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    """12 images in one batch: a step an epoch. With the ramp of a half, the first has no reconstruction and the second its all."""
    found = []
    for changes in ({}, {"ramp": 0}, {"beta_reconstruction": 0}):
        plan = planned({"classifier": {"system": "puzzle", "batch_size": 12, **changes}})
        found.append(pd.read_csv(do(plan, "classifier") / "metrics.csv"))
    ramped, at_once, without = found
    assert ramped["reconstruction"][0] == 0 < ramped["reconstruction"][1]
    assert at_once["reconstruction"][0] > 0
    assert "reconstruction" not in without
    terms = ["classification", "classification_tiles"]
    pd.testing.assert_frame_equal(ramped[terms], without[terms])  # until the second step's update, nothing differs
    assert at_once["classification"][1] != ramped["classification"][1]


def test_rsa_cfc_without_its_modules_trains_to_the_bytes_of_puzzle(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    results = []
    for changes in ({"system": "puzzle"}, {"system": "rsa_cfc", **PUZZLE}, {"system": "rsa_cfc"}):
        plan = planned({"classifier": {"epochs": 1, **changes}})
        results.append((do(plan, "classifier") / "model.safetensors").read_bytes())
    assert results[0] == results[1] != results[2]


@BOTH
def test_training_in_bfloat16_stays_finite(planned: Callable[..., Plan], do: Callable[[Plan, str], Path], system: str) -> None:
    plan = planned({"classifier": {"system": system, "precision": "bf16", "epochs": 1, "ramp": 0}})
    directory = do(plan, "classifier")
    assert read_json(directory / "manifest.json")["precision"] == "bf16-mixed"
    assert np.isfinite(pd.read_csv(directory / "metrics.csv").to_numpy()).all()
    assert all(value.isfinite().all() for value in load_file(directory / "model.safetensors").values())
    assert isinstance(load_model(directory).model(torch.zeros(1, 3, 64, 64), tiles=True), TwoBranches)
