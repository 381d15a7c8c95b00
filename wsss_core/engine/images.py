"""What every stage with a trained network does with images: reads them ahead, resizes, mirrors and normalises them, in the precision of tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from wsss_core.data.images import read_image
from wsss_core.data.index import DataIndex, Record
from wsss_core.data.transforms import normalise
from wsss_core.stage import Stage
from wsss_core.systems.base import System


def images_of(stage: Stage, index: DataIndex, records: Sequence[Record], what: str, total: int | None = None) -> Iterator[np.ndarray]:
    """Yield the images of `records` in order, uint8[H, W, 3], read by the stage's workers ahead of time, with progress called `what`.

    Of `total` images those that are not in `records` were done by an earlier run.
    """
    images = _Images([index.image_path(record) for record in records])
    loader: DataLoader[np.ndarray] = DataLoader(images, batch_size=None, num_workers=stage.workers, collate_fn=_same)  # type: ignore[arg-type]
    total = len(records) if total is None else total
    return stage.track(loader, what, total, total - len(records))


def network_inputs(
    image: np.ndarray,
    system: System,
    device: torch.device | str,
    *,
    resize: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Iterator[Tensor]:
    """Yield an image uint8[H, W, 3] as the system's network takes it, float32[1, 3, h, w], once per scale.

    Parameters
    ----------
    resize
        Longer side in pixels at scale 1; None: the image's own.
    flip
        Also the mirrored image: [2, 3, h, w].
    """
    pixels = normalise(image, system.mean, system.std).unsqueeze(0).to(device)
    base = resize / max(image.shape[:2]) if resize else 1.0
    for scale in scales:
        scaled = _rescale(pixels, base * scale)
        yield torch.cat([scaled, scaled.flip(-1)]) if flip else scaled


def inference_precision(device: torch.device | str) -> torch.autocast:
    """Return the context of a test: bfloat16 on GPUs that have it, else float32."""
    on_gpu = torch.device(device).type == "cuda"
    return torch.autocast("cuda", torch.bfloat16, enabled=on_gpu and torch.cuda.is_bf16_supported())


def _rescale(pixels: Tensor, factor: float) -> Tensor:
    """Resize [N, 3, H, W] by a factor, with a low-pass filter where it shrinks."""
    if factor == 1:
        return pixels
    size = [max(1, round(side * factor)) for side in pixels.shape[-2:]]
    return functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=factor < 1)


class _Images:
    """The images of some records, for a loader with workers."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> np.ndarray:
        return read_image(self.paths[position])


def _same(image: np.ndarray) -> np.ndarray:
    return image
