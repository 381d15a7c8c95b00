"""The precision in which losses are computed, whatever that of the network."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return values of lower precision as float32, others as they are."""
    return values if values.dtype == torch.float64 else values.float()
