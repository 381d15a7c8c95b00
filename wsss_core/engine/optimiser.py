"""Optimisers and learning-rate schedules by name."""

from __future__ import annotations

from typing import Any

import torch

from wsss_core.config import Training


def make_optimiser(config: Training, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimiser over parameter groups that carry their own initial `lr`."""
    groups = [{**group, "initial_lr": group["lr"]} for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, weight_decay=config.weight_decay)


def lr_factor(config: Training, step: int, steps: int) -> float:
    """Return what every group's initial learning rate is multiplied by at an optimiser step in [0, steps)."""
    done = step / steps
    if done < config.warmup:
        return (step + 1) / (config.warmup * steps + 1)
    if config.schedule == "poly":
        return (1 - done) ** config.power
    if config.schedule == "step":
        return config.gamma ** sum(done >= milestone for milestone in config.milestones)
    return 1.0


def set_lr(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its initial one times `factor`."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
