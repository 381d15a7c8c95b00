"""RSA + CFC: its losses against the paper's equations, each switch alone, gradients, precision, and the way through the workflow."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from two_branches import DEFAULTS, HALFWAY, NETWORK, PAPER, PUZZLE, Given, by_equations, gradients, losses_of, outputs_of, puzzle_system

from wsss_core.losses.contrast import foreground_contrast
from wsss_core.systems.base import Progress
from wsss_core.systems.puzzle import TwoBranches

LABELS = torch.tensor([[1.0, 0, 1], [1, 1, 0], [0, 0, 1]])
WITHOUT_CLASS = torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 0, 1]])
SAME, OTHER = ((4, 6), (2, 3)), ((3, 5), (2, 3))
"""Grids of the whole images and of the tiles; of images of 65 x 47 pixels the tiles give one row and one column more."""


def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in losses.items()}


CHANGES: list[dict[str, Any]] = [
    {},
    PAPER,
    {"attention": "none"},
    {"attention": "softmax_dot"},
    {"attention": "relu_cosine"},
    {"attention": "softmax_cosine"},
    {"attention": "softmax_cosine", "temperature": 0.5},
    {"lambda_contrast": 0},
    {"foreground": "relu"},
    {"foreground": "sigmoid"},
    {"pairs": "all"},
    {"reconstruction_level": "logits"},
    {"lambda_contrast": 1.5, "alpha": 1},
    {"beta_reconstruction": 0},
    {"beta_reconstruction": 3, "ramp": 0},
    {"present_only": False},
]
NAMES = ["defaults", "paper", *(",".join(f"{name}={value}" for name, value in changes.items()) for changes in CHANGES[2:])]


@pytest.mark.parametrize("grids", [SAME, OTHER], ids=["same", "other"])
@pytest.mark.parametrize(
    ("labels", "changes"),
    [*((LABELS, changes) for changes in CHANGES), (LABELS[:2], {}), (WITHOUT_CLASS, {}), (WITHOUT_CLASS, {"present_only": False})],
    ids=[*NAMES, "two", "classless", "classless,present_only=False"],
)
def test_the_losses_are_those_of_the_paper(grids: Any, labels: Tensor, changes: dict[str, Any]) -> None:
    outputs = outputs_of(len(labels), *grids)
    before = [each.detach().clone() for each in (*outputs, labels)]
    ours, expected = losses_of(outputs, labels, **changes), by_equations(outputs, labels, 0.25, **changes)
    assert ours.keys() == expected.keys()
    assert numbers(ours) == pytest.approx(numbers(expected), rel=2e-4, abs=1e-6)
    assert sum(numbers(ours).values()) == pytest.approx(sum(numbers(expected).values()), rel=2e-4)
    for name, mine, theirs in zip(outputs._fields, gradients(ours, outputs), gradients(expected, outputs), strict=True):
        torch.testing.assert_close(mine, theirs.float(), rtol=2e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert all(torch.equal(one, other) for one, other in zip((*outputs, labels), before, strict=True))


def test_the_values_that_the_equations_take_are_the_defaults() -> None:
    config = puzzle_system().config
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS


def test_the_total_is_the_weighted_sum() -> None:
    outputs = outputs_of(3, *SAME)
    once = numbers(losses_of(outputs, LABELS, Progress(9, 15, 20), lambda_contrast=1, beta_reconstruction=1))
    ours = numbers(losses_of(outputs, LABELS, Progress(9, 15, 20), lambda_contrast=0.3, beta_reconstruction=4))
    assert ours["contrast"] == pytest.approx(0.3 * once["contrast"]) and ours["reconstruction"] == pytest.approx(4 * once["reconstruction"])
    assert all(value > 0 for value in once.values())
    assert all(ours[name] == once[name] for name in ("classification", "classification_tiles"))


@pytest.mark.parametrize("grids", [SAME, OTHER], ids=["same", "other"])
def test_without_both_modules_it_is_puzzle_cam_to_the_bit(grids: Any) -> None:
    outputs = outputs_of(3, *grids)
    plain, switched_off = losses_of(outputs, LABELS, system="puzzle"), losses_of(outputs, LABELS, **PUZZLE)
    assert list(plain) == list(switched_off)
    assert all(torch.equal(plain[name], switched_off[name]) for name in plain)
    for one, other in zip(gradients(plain, outputs), gradients(switched_off, outputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "touched"),
    [
        ({"attention": "softmax_cosine"}, {"classification_tiles", "reconstruction", "contrast"}),
        ({"attention": "softmax_dot"}, {"classification_tiles", "reconstruction", "contrast"}),
        ({"attention": "none"}, {"classification_tiles", "reconstruction", "contrast"}),
        ({"temperature": 0.5}, set()),  # of another kernel
        ({"attention": "none", "temperature": 0.5}, {"classification_tiles", "reconstruction", "contrast"}),
        ({"alpha": 1}, {"contrast"}),
        ({"present_only": False}, {"contrast"}),
        ({"foreground": "relu"}, {"contrast"}),
        ({"foreground": "sigmoid"}, {"contrast"}),
        ({"pairs": "all"}, {"contrast"}),
        ({"reconstruction_level": "logits"}, {"reconstruction"}),
        ({"tile_statistics": True}, set()),  # of the network
        ({"lambda_contrast": 1}, {"contrast"}),
        ({"lambda_contrast": 0}, {"contrast"}),
        ({"beta_reconstruction": 1}, {"reconstruction"}),
        ({"beta_reconstruction": 0}, {"reconstruction"}),
        ({"ramp": 0.9}, {"reconstruction"}),
    ],
)
def test_a_switch_touches_its_own_terms_alone(changes: dict[str, Any], touched: set[str]) -> None:
    outputs = outputs_of(3, *SAME)
    before, after = numbers(losses_of(outputs, LABELS)), numbers(losses_of(outputs, LABELS, **changes))
    assert {name for name in before if before[name] != after.get(name)} == touched


def test_the_temperature_is_that_of_the_softmax() -> None:
    outputs = outputs_of(3, *SAME)
    sharp, blunt = (numbers(losses_of(outputs, LABELS, attention="softmax_cosine", temperature=each)) for each in (0.05, 1))
    assert {name for name in sharp if sharp[name] != blunt[name]} == {"classification_tiles", "reconstruction", "contrast"}


def test_just_classes_of_the_image_are_foreground() -> None:
    """Without `present_only`, maps of absent classes count; with it, they may be anything."""
    outputs = outputs_of(3, *SAME)
    shown = LABELS.bool().repeat(4, 1)  # tile-major
    wild = outputs._replace(tile_maps=torch.where(shown[:, :, None, None], outputs.tile_maps, torch.full_like(outputs.tile_maps, 50.0)))
    for foreground in ("cam", "relu", "sigmoid"):
        for present_only in (True, False):
            changes = {"attention": "none", "present_only": present_only, "foreground": foreground}
            one, other = (losses_of(each, LABELS, **changes)["contrast"] for each in (outputs, wild))
            assert torch.equal(one, other) is present_only


def test_images_without_a_common_class_are_no_pair() -> None:
    """Of three images the first two share a class. The third may look like anything, unless all pairs count."""
    labels, outputs = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1]]), outputs_of(3, *SAME)
    features = outputs.tile_features.detach().clone()
    features[2::3] = features[2::3].flip(1) * 3  # tile-major: those of the third
    changed = outputs._replace(tile_features=features)
    for pairs in ("sharing", "all"):
        one, other = (losses_of(each, labels, attention="none", pairs=pairs, present_only=False)["contrast"] for each in (outputs, changed))
        assert torch.equal(one, other) is (pairs == "sharing")
    third = gradients({"contrast": losses_of(outputs, labels)["contrast"]}, outputs)[2][2::3]
    assert not third.any()
    apart = losses_of(outputs, torch.eye(3))["contrast"]
    assert apart.item() == 0 and not any(each.any() for each in gradients({"contrast": apart}, outputs))
    first_two = TwoBranches(*(each[torch.arange(len(each)) % 3 < 2] for each in outputs))
    torch.testing.assert_close(losses_of(first_two, labels[:2])["contrast"], losses_of(outputs, labels)["contrast"])


def test_the_rank_weight_ranks_and_is_not_learned() -> None:
    outputs = outputs_of(3, *SAME)
    ours = gradients({"contrast": losses_of(outputs, LABELS)["contrast"]}, outputs)
    detached, learned = (
        gradients({"contrast": by_equations(outputs, LABELS, 0, weight_gives_gradient=flag)["contrast"]}, outputs) for flag in (False, True)
    )
    for mine, right, wrong in zip(ours[1:], detached[1:], learned[1:], strict=True):
        torch.testing.assert_close(mine, right.float(), rtol=2e-3, atol=1e-6)
        assert (right - wrong).norm() > 0.01 * right.norm()


FLOWS: list[tuple[str, dict[str, Any], tuple[bool, ...]]] = [
    ("classification", {}, (True, False, False)),
    ("classification_tiles", {}, (False, True, True)),
    ("classification_tiles", {"attention": "none"}, (False, False, True)),
    ("reconstruction", {}, (True, True, True)),
    ("reconstruction", {"attention": "none"}, (True, False, True)),
    ("contrast", {}, (False, True, True)),
    ("contrast", {"attention": "none"}, (False, True, True)),
]


@pytest.mark.parametrize(("term", "changes", "flows"), FLOWS)
def test_gradients_flow_where_they_should(term: str, changes: dict[str, Any], flows: tuple[bool, ...]) -> None:
    outputs = outputs_of(3, *SAME)
    found = gradients({term: losses_of(outputs, LABELS, **changes)[term]}, outputs)
    assert tuple(bool(each.any()) for each in found) == flows


@pytest.mark.parametrize("height", [0.0, 1e-6, -1e-6, 0.04, 0.06, 9.0, -9.0])
def test_no_height_of_the_maps_gives_the_contrast_a_large_gradient(height: float) -> None:
    """Not where maps cross 0 either, where a foreground vector of the maps themselves would vanish and its direction turn with every breath."""
    outputs = outputs_of(3, *SAME)
    flat = outputs._replace(tile_maps=(height + 1e-6 * outputs.tile_maps).detach().requires_grad_())
    for foreground in ("cam", "relu", "sigmoid"):
        found = gradients({"contrast": losses_of(flat, LABELS, attention="none", foreground=foreground)["contrast"]}, flat)[2]
        assert found.norm() < 2
        assert bool(found.any()) is (foreground == "sigmoid" or height > 0.05)  # next to nothing is no foreground


def test_a_tile_without_the_object_has_a_foreground_for_the_sigmoid_alone() -> None:
    outputs = outputs_of(3, *SAME)
    maps = outputs.tile_maps.detach().abs() + 1
    maps[:3] = -3  # the top left tiles
    outputs = outputs._replace(tile_maps=maps.requires_grad_())
    for foreground in ("cam", "relu", "sigmoid"):
        found = gradients({"contrast": losses_of(outputs, LABELS, attention="none", foreground=foreground)["contrast"]}, outputs)
        assert bool(found[1][:3].any()) is (foreground == "sigmoid") and found[1][3:].any()


def test_the_foreground_is_that_of_the_attended_maps() -> None:
    features = torch.zeros(8, 2, 1, 2)
    features[:, 0, :, 0], features[:, 1, :, 1] = 1, 1  # two cells that have nothing in common
    tile_maps = torch.full((8, 1, 1, 2), -25.0)
    tile_maps[0::2, :, :, 0], tile_maps[1::2, :, :, 1] = 60, 60  # the first image's class lies on one, the second's on the other
    outputs, labels = TwoBranches(torch.zeros(2, 1, 2, 4), features, tile_maps), torch.ones(2, 1)
    unlike = losses_of(outputs, labels)["contrast"].item()
    assert unlike == pytest.approx(-0.5 * 0.5 * math.log(1e-5), rel=1e-3)  # W of cosines of 0 is a half
    features[:, :, :, 1] = features[:, :, :, 0]
    alike = losses_of(outputs, labels)["contrast"].item()
    assert alike == pytest.approx(0, abs=1e-4)
    features[:, 0, :, 1], features[:, 1, :, 1] = 1, 1  # half alike: RSA makes the foregrounds meet
    partly, without = (losses_of(outputs, labels, attention=kernel)["contrast"].item() for kernel in ("relu_cosine", "none"))
    assert alike < partly < 0.5 * without < unlike


def test_how_much_the_attention_keeps_is_observed() -> None:
    features = torch.zeros(8, 2, 1, 4)
    features[:, 0, :, :2], features[:, 1, :, 2:] = 1, 1  # two and two cells that are alike
    tile_maps = torch.tensor([3.0, 1, -1, -3]).expand(8, 2, 1, 4)
    outputs = TwoBranches(torch.zeros(2, 2, 2, 8), features, tile_maps)
    system = puzzle_system(classes=3)
    system.losses(Given(outputs), {"image": torch.zeros(0), "label": torch.ones(2, 2)}, HALFWAY)
    assert {name: value.item() for name, value in system.observed().items()} == {"attention_kept": pytest.approx(2 / 5**0.5)}
    for kernel in ("none", "softmax_dot"):
        system = puzzle_system(classes=3, attention=kernel)
        system.losses(Given(outputs), {"image": torch.zeros(0), "label": torch.ones(2, 2)}, HALFWAY)
        assert set(system.observed()) == (set() if kernel == "none" else {"attention_kept"})


ODD_OUTPUTS = {
    "one image": (outputs_of(1, *SAME), LABELS[:1]),
    "one image without a class": (outputs_of(1, *OTHER), torch.zeros(1, 3)),
    "no image with a class": (outputs_of(2, *SAME), torch.zeros(2, 3)),
    "maps of zeros": (TwoBranches(*(torch.zeros_like(each, requires_grad=True) for each in outputs_of(3, *OTHER))), LABELS),
    "no positive map": (TwoBranches(*((each - 9).detach().requires_grad_() for each in outputs_of(3, *SAME))), LABELS),
    "constant maps": (outputs_of(3, *SAME)._replace(tile_maps=torch.full((12, 3, 2, 3), 1e-20, requires_grad=True)), LABELS),
    "dead tiles": (outputs_of(3, *SAME)._replace(tile_features=torch.zeros(12, 5, 2, 3, requires_grad=True)), LABELS),
    "no features but one": (outputs_of(3, *SAME)._replace(tile_features=torch.ones(12, 5, 2, 3, requires_grad=True)), LABELS),
    "large": (TwoBranches(*((1e3 * each).detach().requires_grad_() for each in outputs_of(3, *SAME, channels=2048))), LABELS),
    "tiles of one cell": (outputs_of(3, (2, 2), (1, 1)), LABELS),
}


@pytest.mark.parametrize("attention", ["centred_cosine", "softmax_dot", "relu_cosine", "softmax_cosine", "none"])
@pytest.mark.parametrize("foreground", ["cam", "relu", "sigmoid"])
@pytest.mark.parametrize("case", ODD_OUTPUTS)
def test_odd_outputs_give_finite_losses_and_gradients(case: str, foreground: str, attention: str) -> None:
    outputs, labels = ODD_OUTPUTS[case]
    losses = losses_of(outputs, labels, attention=attention, foreground=foreground)
    assert set(losses) == {"classification", "classification_tiles", "reconstruction", "contrast"}
    assert all(math.isfinite(value) for value in numbers(losses).values())
    assert all(each.isfinite().all() for each in gradients(losses, outputs))
    nothing_to_compare = case in ("one image", "one image without a class", "no image with a class", "maps of zeros", "dead tiles")
    nothing_to_compare |= foreground != "sigmoid" and case in ("no positive map", "constant maps")
    contrast = gradients({"contrast": losses["contrast"]}, outputs)
    assert (numbers(losses)["contrast"] == 0) is nothing_to_compare
    assert any(each.any() for each in contrast) is not nothing_to_compare
    assert gradients(losses, outputs)[0].any()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("changes", [{}, {"attention": "softmax_cosine"}, {"attention": "none", "present_only": False}])
def test_losses_in_half_precision_are_near_those_in_full(changes: dict[str, Any], precision: torch.dtype) -> None:
    outputs = outputs_of(3, (8, 8), (4, 4), channels=64)
    full = numbers(losses_of(outputs, LABELS, **changes))
    low = TwoBranches(*(each.detach().to(precision).requires_grad_() for each in outputs))
    with torch.autocast("cpu", precision):
        losses = losses_of(low, LABELS, **changes)
    assert numbers(losses) == pytest.approx(full, rel=0.02, abs=0.005)
    assert all(each.isfinite().all() for each in gradients(losses, low))


def test_a_large_foreground_does_not_overflow_in_half_precision() -> None:
    """256 cells of features of some hundreds add up to more than the 65504 of float16."""
    maps, features, tile_maps = (each.detach().abs() for each in outputs_of(2, (32, 32), (16, 16)))
    outputs = TwoBranches((20 * maps).half(), (400 * features).half(), (20 * tile_maps).half())
    assert outputs.tile_features.float().sum(dim=(2, 3)).max() > 65504
    full = numbers(losses_of(TwoBranches(*(each.float() for each in outputs)), LABELS[:2]))
    with torch.autocast("cpu", torch.float16):
        assert numbers(losses_of(outputs, LABELS[:2])) == pytest.approx(full, rel=0.02, abs=0.005)


@pytest.mark.parametrize("size", [(64, 64), (65, 47)])
def test_a_network_in_half_precision_has_finite_losses_and_gradients(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    system = puzzle_system()
    model, images = system.build(), torch.randn(3, 3, *size)
    with torch.autocast("cpu", torch.bfloat16):
        losses = system.losses(model, {"image": images, "label": WITHOUT_CLASS}, HALFWAY)
    torch.stack(list(losses.values())).sum().backward()
    assert all(math.isfinite(value) for value in numbers(losses).values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_contrast_is_computed_in_full_precision() -> None:
    """Cosines of foregrounds that look alike lie nearer together than the steps of bfloat16 below 1."""
    vectors = 1 + 0.2 * torch.rand(12, 9, generator=torch.Generator().manual_seed(0))
    full = foreground_contrast(vectors).item()
    with torch.autocast("cpu", torch.bfloat16):
        assert foreground_contrast(vectors).item() == pytest.approx(full, rel=1e-3)


def test_the_modules_have_no_parameters_and_take_no_randomness() -> None:
    system = puzzle_system()
    assert system.attention is not None and not list(system.attention.parameters()) and not list(system.attention.buffers())  # type: ignore[attr-defined]
    before = torch.get_rng_state()
    system.losses(Given(outputs_of(3, *SAME)), {"image": torch.zeros(0), "label": LABELS}, HALFWAY)
    assert torch.equal(before, torch.get_rng_state())
    assert NETWORK["backbone"] == system.config.backbone
