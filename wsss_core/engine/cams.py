"""Multi-scale class activation maps, from a trained classifier to the score store.

Each map is the sum over scales and mirrored images of ReLU(w_c . f), resized to a common size, divided by its maximum
(+ 1e-5): the protocol of the PSA/IRN family.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.config import Cams
from wsss_core.data.index import DataIndex, Record
from wsss_core.engine.images import images_of, inference_precision, network_inputs
from wsss_core.engine.models import TrainedModel
from wsss_core.errors import UserError
from wsss_core.stage import Stage
from wsss_core.store import ScoreWriter, join_stores, shard_ranges
from wsss_core.systems.base import CamSystem

_SHARD = 128
_EPS = 1e-5


def write_scores(
    stage: Stage, trained: TrainedModel, index: DataIndex, records: Sequence[Record], config: Cams, path: Path, *, shards: Path, what: str
) -> None:
    """Write the score store `path` with the maps of `records`, from one file per 128 images in the directory `shards`.

    Shards that are there are taken as they are: a killed run goes on after the last of them.
    """
    ranges = [(shards / f"shard-{begin:07d}.h5", records[begin:end]) for begin, end in shard_ranges(len(records), _SHARD)]
    todo = [record for shard, part in ranges if not shard.exists() for record in part]
    images = images_of(stage, index, todo, what)
    for shard, part in ranges:
        if shard.exists():
            continue
        with ScoreWriter(shard, index.num_classes) as writer:
            for record in part:
                image = next(images)
                maps, scores = multiscale_cams(trained, image, config)
                kept = _kept(config, record, scores)
                normed = normalise_cams(maps[[c - 1 for c in kept]])
                writer.add(record.id, normed, np.array(kept, np.int32), image.shape[:2], score=scores)
    next(images, None)
    join_stores([shard for shard, _ in ranges], path)


@torch.inference_mode()
def multiscale_cams(trained: TrainedModel, image: np.ndarray, config: Cams) -> tuple[np.ndarray, np.ndarray]:
    """Sum the maps of one image over scales and flips.

    Parameters
    ----------
    trained
        A classifier.
    image
        uint8[H, W, 3].

    Returns
    -------
    maps
        float32[C-1, ceil(H/stride), ceil(W/stride)], not normalised.
    scores
        float32[C-1], class probabilities in [0, 1], averaged over scales and flips before the sigmoid.
    """
    system = trained.system
    if not isinstance(system, CamSystem):
        raise UserError(f"system {system.config.system} gives no class activation maps")
    device = next(trained.model.parameters()).device
    size = tuple(-(-side // config.stride) for side in image.shape[:2])
    total: Tensor | None = None
    logits = []
    for inputs in network_inputs(image, system, device, resize=config.resize, scales=config.scales, flip=config.flip):
        with inference_precision(device):
            maps, scores = system.cams(trained.model, inputs)
        maps = functional.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)
        summed = maps[0] + maps[1].flip(-1) if config.flip else maps[0]
        total = summed if total is None else total + summed
        logits.append(scores.float().mean(dim=0))
    assert total is not None
    return total.cpu().numpy(), torch.stack(logits).mean(dim=0).sigmoid().cpu().numpy()


def normalise_cams(maps: np.ndarray) -> np.ndarray:
    """Divide each map of float32[K, h, w] by its maximum (+ 1e-5)."""
    return maps / (maps.max(axis=(1, 2), keepdims=True) + _EPS)


def _kept(config: Cams, record: Record, scores: np.ndarray) -> list[int]:
    if config.classes == "image_labels":
        return list(record.labels)
    return [int(c) + 1 for c in np.flatnonzero(scores > 0.5)]
