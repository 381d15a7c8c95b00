"""A segmenter as one file that runs without this package."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsss_core.engine.models import load_model
from wsss_core.errors import UserError
from wsss_core.files import atomic_path
from wsss_core.systems.base import SegmentSystem


class _Probabilities(nn.Module):
    """Images in [0, 1] to class probabilities, normalisation included."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, system: SegmentSystem) -> None:
        super().__init__()
        self.model, self.system = model, system
        self.register_buffer("mean", torch.tensor(system.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(system.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.system.segment(self.model, (images - self.mean) / self.std)
        return functional.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False).softmax(dim=1)


def export_model(directory: Path, output: Path, size: int) -> None:
    """Write TorchScript (`.pt`) or ONNX (`.onnx`, needs the package `onnx`): images [N, 3, H, W] in [0, 1] to probabilities [N, C, H, W].

    TorchScript is traced at `size` x `size` pixels; the result takes that size. Raises `UserError` for another suffix or a model that is no segmenter.
    """
    trained = load_model(directory)
    if not isinstance(trained.system, SegmentSystem):
        raise UserError(f"{directory}: holds a model of the system {trained.system.config.system}, not a segmenter")
    wrapped = _Probabilities(trained.model, trained.system).eval()
    example = torch.zeros(1, 3, size, size)
    if output.suffix == ".pt":
        traced = torch.jit.trace(wrapped, example, check_trace=False)
        with atomic_path(output) as temporary:
            torch.jit.save(traced, str(temporary))
    elif output.suffix == ".onnx":
        try:
            with atomic_path(output) as temporary:
                torch.onnx.export(wrapped, (example,), str(temporary), input_names=["images"], output_names=["probabilities"], dynamo=False)
        except ImportError as error:
            raise UserError(f"{output}: ONNX export needs a package that is not installed ({error})") from None
    else:
        raise UserError(f"{output}: expected a name ending in .pt (TorchScript) or .onnx")
