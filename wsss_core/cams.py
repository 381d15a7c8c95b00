"""Multi-scale class activation maps, from a trained classifier to the score store.

Each map is the sum over scales and mirrored images of ReLU(w_c . f), resized to a common size, divided by its maximum
(+ 1e-5): the protocol of the PSA/IRN family.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from wsss_core.config import Cams, validate
from wsss_core.data.images import read_image
from wsss_core.data.index import DataIndex, Record, read_index
from wsss_core.data.transforms import normalise
from wsss_core.devices import torch_device
from wsss_core.engine.models import TrainedModel, load_model, snapshot_directory
from wsss_core.errors import UserError
from wsss_core.nn.backbones import Features
from wsss_core.stages import SPEC, Stage
from wsss_core.store import ScoreWriter, join_stores, shard_ranges
from wsss_core.systems.base import CamSystem

SCORES = "scores.h5"
_SHARD = 128
_EPS = 1e-5


def write_cams(stage: Stage) -> None:
    """Do a cams stage. Output: `scores.h5`, the maps of each training image's classes, with the class scores as `extra/score`."""
    parameters = {key: value for key, value in stage.parameters.items() if key not in ("split", "snapshot")}
    config = validate(Cams, parameters, str(stage.output / SPEC))
    index = read_index(stage.input("data"), stage.spec.files.get("root"))
    records = index.split(stage.parameters["split"])
    torch.set_num_threads(stage.threads)
    model, epoch = stage.input("model"), stage.parameters.get("snapshot")
    trained = load_model(model if epoch is None else snapshot_directory(model, epoch), torch_device(stage.gpus))
    write_scores(stage, trained, index, records, config, stage.output / SCORES, shards=stage.resume, what="cams")


def write_scores(
    stage: Stage, trained: TrainedModel, index: DataIndex, records: Sequence[Record], config: Cams, path: Path, *, shards: Path, what: str
) -> None:
    """Write the score store `path` with the maps of `records`, from one file per 128 images in the directory `shards`.

    Shards that are there are taken as they are: a killed run goes on after the last of them.
    """
    ranges = [(shards / f"shard-{begin:07d}.h5", records[begin:end]) for begin, end in shard_ranges(len(records), _SHARD)]
    todo = [record for shard, part in ranges if not shard.exists() for record in part]
    images = stage.track(read_ahead(index, todo, int(stage.spec.run.get("workers", 0))), what, len(todo))
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
    pixels = normalise(image, system.mean, system.std).unsqueeze(0).to(device)
    height, width = image.shape[:2]
    base = config.resize / max(height, width) if config.resize else 1.0
    size = (-(-height // config.stride), -(-width // config.stride))
    total: Tensor | None = None
    logits = []
    for scale in config.scales:
        inputs = rescale(pixels, base * scale)
        if config.flip:
            inputs = torch.cat([inputs, inputs.flip(-1)])
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda" and torch.cuda.is_bf16_supported()):
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


class Classified(NamedTuple):
    """What a classifier makes of N images.

    Attributes
    ----------
    scores
        Class probabilities, float32[N, C-1].
    labels
        Image-level labels, float32[N, C-1].
    embeddings
        float32[N, D], see `image_embeddings`; None of a network that has no backbone `features`.
    """

    scores: np.ndarray
    labels: np.ndarray
    embeddings: np.ndarray | None


@torch.inference_mode()
def classify(stage: Stage, index: DataIndex, split: str) -> Classified:
    """Classify the images of a split; one pass per image, at the CAMs' scale 1 (parameter `resize`)."""
    torch.set_num_threads(stage.threads)
    trained = load_model(stage.input("model"), torch_device(stage.gpus))
    records = index.split(split)
    plain = Cams(scales=(1.0,), flip=False, resize=stage.parameters.get("resize"))
    images = stage.track(read_ahead(index, list(records), int(stage.spec.run.get("workers", 0))), "classify", len(records))
    with image_embeddings(trained.model) as embeddings:
        scores = [multiscale_cams(trained, image, plain)[1] for image in images]
    labels = np.stack([index.multi_hot(record) for record in records])
    return Classified(np.stack(scores), labels, np.concatenate(embeddings) if embeddings else None)


@contextlib.contextmanager
def image_embeddings(model: nn.Module) -> Iterator[list[np.ndarray]]:
    """Collect the embeddings float32[N, D] of all batches that pass through a model inside the block; none if its `features` are no backbone.

    An embedding is the mean of the backbone's final features over the whole image: what MuSCLe's image contrast compares (Eq. 1).
    """
    collected: list[np.ndarray] = []
    features = getattr(model, "features", None)
    if not isinstance(features, Features):
        yield collected
        return
    hook = features.register_forward_hook(lambda _, __, output: collected.append(output[0].float().mean(dim=(2, 3)).cpu().numpy()))
    try:
        yield collected
    finally:
        hook.remove()


def _kept(config: Cams, record: Record, scores: np.ndarray) -> list[int]:
    if config.classes == "image_labels":
        return list(record.labels)
    return [int(c) + 1 for c in np.flatnonzero(scores > 0.5)]


def rescale(pixels: Tensor, factor: float) -> Tensor:
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


def read_ahead(index: DataIndex, records: list[Record], workers: int) -> Iterator[np.ndarray]:
    """Yield the images of `records` in order, uint8[H, W, 3], read by `workers` processes ahead of time."""
    images = _Images([index.image_path(record) for record in records])
    yield from DataLoader(images, batch_size=None, num_workers=workers, collate_fn=_same)  # type: ignore[arg-type]


def _same(image: np.ndarray) -> np.ndarray:
    return image
