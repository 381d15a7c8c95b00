"""A trained model on disk: `model.safetensors` and `model.json`, enough to build it again without the workflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from wsss_core.errors import UserError
from wsss_core.files import atomic_path, read_json, write_json
from wsss_core.nn.backbones import memory_format
from wsss_core.systems import make_system
from wsss_core.systems.base import System

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def snapshot_directory(directory: Path, epoch: int) -> Path:
    """Place of the copy kept after an epoch, below a training's own directory."""
    return directory / "snapshots" / f"epoch-{epoch:04d}"


@dataclass(frozen=True)
class TrainedModel:
    """A model in evaluation mode, its system and its classes (background first)."""

    system: System
    model: nn.Module
    classes: tuple[str, ...]


def save_model(directory: Path, model: nn.Module, parameters: dict[str, Any], classes: tuple[str, ...]) -> None:
    """Write weights and description."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(directory / WEIGHTS) as temporary:
        save_file(state, temporary)
    write_json(directory / DESCRIPTION, {"parameters": parameters, "classes": list(classes)})


def load_model(directory: Path, device: str | torch.device = "cpu", options: dict[str, Any] | None = None) -> TrainedModel:
    """Build and load a model; raises `UserError` if the directory holds none or its weights are damaged.

    `options` are parameters of the system that its tests alone have to be told.
    """
    description = read_json(directory / DESCRIPTION)
    if not isinstance(description, dict) or {"parameters", "classes"} - set(description):
        raise UserError(f"{directory / DESCRIPTION}: not the description of a trained model")
    parameters = {**description["parameters"], **(options or {}), "weights": "none"}
    system = make_system(parameters, len(description["classes"]), str(directory / DESCRIPTION))
    model = system.build()
    try:
        model.load_state_dict(load_file(directory / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{directory / WEIGHTS}: cannot be loaded ({str(error).splitlines()[0]})") from None
    model.to(memory_format=memory_format(model, system.config.channels_last))  # type: ignore[call-overload]
    return TrainedModel(system, model.eval().to(device), tuple(description["classes"]))
