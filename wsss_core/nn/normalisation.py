"""Batch normalisation when a network sees more than what it is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def without_running_statistics(module: nn.Module) -> Iterator[None]:
    """Keep what the module sees inside the context out of the running statistics of its batch normalisation.

    In training mode a batch still normalises by its own mean and variance; running means, variances and counts stay to the bit what they were. In
    evaluation mode, and for a frozen network, nothing changes. For a second pass over something else than whole images (tiles, crops): what is
    tested are whole images, whose statistics are others.

    Notes
    -----
    PyTorch has no call for it; `track_running_stats` is looked up in each forward pass, by its own layers (the synchronised one included) and timm's.
    To be entered inside the module's `forward`, so that it holds on every device. The flags are no part of a state dict.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
