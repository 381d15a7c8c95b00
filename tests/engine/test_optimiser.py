"""Optimisers and schedules."""

from __future__ import annotations

import pytest
import torch

from wsss_core.config import CamClassifier, Training
from wsss_core.engine.optimiser import lr_factor, make_optimiser, set_lr
from wsss_core.systems.cam import Cam


def config(**changes: object) -> Training:
    return Training.model_validate(changes)


def test_poly_falls_from_one_to_nearly_zero() -> None:
    factors = [lr_factor(config(warmup=0), step, 100) for step in range(100)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.5**0.9)
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 0.02


def test_step_multiplies_at_each_milestone() -> None:
    chosen = config(warmup=0, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    assert [lr_factor(chosen, step, 100) for step in (0, 49, 50, 74, 75, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warmup_rises_and_then_the_schedule_goes_on() -> None:
    chosen = config(schedule="constant", warmup=0.1)
    factors = [lr_factor(chosen, step, 100) for step in range(12)]
    assert factors[:10] == sorted(factors[:10])
    assert 0 < factors[0] < 0.2
    assert factors[10:] == [1, 1]


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_groups_keep_their_own_rate(name: str, kind: type) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (0.1, 1.0), strict=True)] + [{"params": [], "lr": 5.0}]
    optimiser = make_optimiser(config(optimizer=name), groups)
    set_lr(optimiser, 0.5)
    assert type(optimiser) is kind
    assert [group["lr"] for group in optimiser.param_groups] == [0.05, 0.5]


@pytest.mark.parametrize(
    ("backbone", "optimizer", "lr", "expected"),
    [
        ("test_resnet", "adamw", "auto", 3e-4),
        ("test_vit", "adamw", "auto", 1e-4),
        ("test_vit", "adam", "auto", 1e-4),
        ("test_resnet", "sgd", "auto", 1e-2),
        ("test_vit", "sgd", 0.5, 0.5),
    ],
)
def test_an_automatic_rate_fits_the_optimiser_and_the_backbone(backbone: str, optimizer: str, lr: object, expected: float) -> None:
    block = CamClassifier.model_validate({"backbone": backbone, "weights": "none", "optimizer": optimizer, "lr": lr})
    system = Cam(block, 3)
    groups = system.parameter_groups(system.build())
    assert [group["lr"] for group in groups] == pytest.approx([expected, 10 * expected])
