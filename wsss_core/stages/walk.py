"""The `walk` stage: class activation maps spread over the image by a random walk, as AffinityNet or the boundary network allows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsss_core.config import Walk, validate
from wsss_core.data.index import read_index
from wsss_core.devices import torch_device
from wsss_core.engine.images import images_of, inference_precision, network_inputs
from wsss_core.engine.models import load_model
from wsss_core.errors import UserError
from wsss_core.refine.random_walk import batches_of_similar_size, walk
from wsss_core.refine.scores import SCORES, is_complete, open_store, records_of
from wsss_core.stage import SPEC, Stage
from wsss_core.store import ScoreStore, ScoreWriter, join_stores, shard_ranges
from wsss_core.systems.pairs import Affinities, PairSystem

BOUNDARY = "boundary.h5"
_IMAGES_PER_SHARD = 64
_MOST_ENTRIES, _MOST_IMAGES = 14_000_000, 16
"""Matrix entries (some 30 bytes each while it is built) and images of a batch."""
_MOST_WEIGHTS = 50_000_000
"""Pair weights of images that wait to be walked together (200 MB)."""
_EPS = 1e-5
PUBLISHED_STEPS, PUBLISHED_AREA = 256, 500 * 375
"""Steps of PSA and IRN, and the usual size of the photos of PASCAL VOC, on which they were tuned."""


@dataclass(frozen=True)
class Walker:
    """One image, ready to walk.

    Attributes
    ----------
    scores
        float32[C, h, w], what walks: the classes, after the background if that walks too.
    weights
        float32[K, h, w], affinity^beta of the pairs.
    steps
        Steps of its walk.
    """

    scores: Tensor
    weights: Tensor
    steps: int


def walk_scores(stage: Stage) -> None:
    """Do the `walk` stage.

    Reads the score store of the stage in the role `scores` (maps in [0, 1] of classes >= 1), the network in the role `model` and
    the images; writes `scores.h5` with the same images in the same order, at the network's grid (a cell of 8 pixels for AffinityNet,
    of 4 for the boundary network), and for the boundary network `boundary.h5`, one channel of boundary probabilities per image.

    Parameters of the stage: those of `config.Walk`. Killed, it goes on after the last finished shard of 64 images. Raises
    `UserError` for an image that is missing, unreadable, not in the index, or of another size than its scores.
    """
    config = validate(Walk, stage.parameters, str(stage.output / SPEC))
    index = read_index(stage.input("data"), stage.spec.files.get("root"))
    store = open_store(stage.input("scores", SCORES))
    records = records_of(index, store)
    torch.set_num_threads(stage.threads)
    device = torch_device(stage.gpus)
    trained = load_model(stage.input("model"), device)
    if not isinstance(trained.system, PairSystem):
        raise UserError(f"{stage.input('model')}: the system {trained.system.config.system} gives no affinities to walk by")
    ranges = shard_ranges(len(store), _IMAGES_PER_SHARD)
    shards = [(stage.resume / f"shard-{begin:07d}.h5", stage.resume / f"boundary-{begin:07d}.h5") for begin, _ in ranges]
    missing = [i for i, (begin, end) in enumerate(ranges) if not is_complete(shards[i][0], store.ids[begin:end])]
    todo = [record for i in missing for record in records[slice(*ranges[i])]]
    images = images_of(stage, index, todo, "walking", len(store))
    for i in missing:
        ids = store.ids[slice(*ranges[i])]
        walked, boundaries = walk_images(trained.system, trained.model, images, ids, store, config)
        if boundaries:  # first: a shard counts as finished when its scores are there
            with ScoreWriter(shards[i][1], 1, dtype="uint8") as writer:
                for name, boundary in zip(ids, boundaries, strict=True):
                    writer.add(name, boundary[None], np.zeros(1, np.int32), store.size(name))
        with ScoreWriter(shards[i][0], store.num_classes) as writer:
            for name, scores in zip(ids, walked, strict=True):
                classes = store.classes(name)
                if config.background == "power" and len(classes):
                    classes = np.concatenate([[0], classes])
                writer.add(name, scores, classes, store.size(name))
    next(images, None)  # ends the progress display
    of_boundaries = [path for _, path in shards if path.exists()]
    if of_boundaries:
        join_stores(of_boundaries, stage.output / BOUNDARY)
    join_stores([scores for scores, _ in shards], stage.output / SCORES)


def walk_images(
    system: PairSystem, model: torch.nn.Module, images: Iterator[np.ndarray], ids: list[str], store: ScoreStore, config: Walk
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the walked, normalised scores float32[C, h, w] of some images, and their boundary maps float32[h, w], if the network gives any."""
    device = next(model.parameters()).device
    walked: list[Tensor] = []
    waiting: list[Walker] = []
    boundaries: list[np.ndarray] = []
    for name in ids:
        affinities = affinities_of(system, model, next(images), store.size(name), config, name)
        if affinities.boundary is not None:
            boundaries.append(affinities.boundary.cpu().numpy())
        cams = torch.from_numpy(store.read(name)[0]).to(device)
        waiting.append(walker_of(cams, affinities, store.size(name), config, system.default_beta))
        if sum(each.weights.numel() for each in waiting) > _MOST_WEIGHTS:
            walked += walk_all(waiting)
            waiting = []
    walked += walk_all(waiting)
    broken = next((name for name, scores in zip(ids, walked, strict=True) if not bool(scores.isfinite().all())), None)
    if broken is not None:
        raise UserError(f"image '{broken}': the walked scores are not finite; train the network again with a smaller lr or clip_norm")
    return [finish(scores, config).cpu().numpy() for scores in walked], boundaries


@torch.inference_mode()
def affinities_of(
    system: PairSystem, model: torch.nn.Module, image: np.ndarray, size: tuple[int, int], config: Walk, name: str
) -> Affinities:
    """Return what the network says of an image uint8[H, W, 3]; `size` is the one that its scores were made for."""
    if image.shape[:2] != size:
        actual, expected = (f"{width}x{height}" for height, width in (image.shape[:2], size))
        raise UserError(f"image '{name}' is {actual} pixels, its scores are for {expected}; make them again")
    device = next(model.parameters()).device
    (pixels,) = network_inputs(image, system, device, resize=config.resize)
    with inference_precision(device):
        return system.affinities(model, pixels, config)


def walker_of(cams: Tensor, affinities: Affinities, size: tuple[int, int], config: Walk, default_beta: float) -> Walker:
    """Bring CAMs float32[C, h', w'] of an image of (H, W) pixels to the network's grid, add the background if it walks, raise the affinities to beta.

    On boundaries nothing starts to walk: scores times 1 - boundary (IRN).
    """
    grid = affinities.values.shape[-2:]
    scores = cams.new_zeros(1, 0, *grid)
    if len(cams):
        scores = cams[None]
        if cams.shape[-2:] != grid:
            scores = functional.interpolate(scores, size=grid, mode="bilinear", align_corners=False, antialias=True)
        if config.background == "power":
            strongest = scores.amax(dim=1, keepdim=True).clamp(0, 1)
            scores = torch.cat([(1 - strongest) ** config.background_power, scores], dim=1)
        if affinities.boundary is not None:
            scores = scores * (1 - affinities.boundary)
    weights = affinities.values ** (config.beta or default_beta)
    scale = config.resize / max(size) if config.resize else 1.0
    return Walker(scores[0], weights, steps_for((size[0] * scale, size[1] * scale), config.steps))


def walk_all(walkers: list[Walker]) -> list[Tensor]:
    """Walk many images, batches of similar size at a time; return float32[C, h, w] of each."""
    walked: dict[int, Tensor] = {}
    most_cells = _MOST_ENTRIES // (2 * max((len(each.weights) for each in walkers), default=0) + 1)
    for steps in sorted({each.steps for each in walkers}):
        places = [i for i, each in enumerate(walkers) if each.steps == steps]
        sizes = [(walkers[i].scores.shape[1], walkers[i].scores.shape[2]) for i in places]
        for batch in batches_of_similar_size(sizes, most_cells, _MOST_IMAGES):
            together = [walkers[places[i]] for i in batch]
            height, width = (max(sizes[i][axis] for i in batch) for axis in (0, 1))
            channels = max(len(each.scores) for each in together)
            scores = torch.stack([_padded(each.scores, channels, height, width) for each in together])
            weights = torch.stack([_padded(each.weights, len(each.weights), height, width) for each in together])
            for i, each, result in zip(batch, together, walk(scores, weights, steps), strict=True):
                walked[places[i]] = result[: len(each.scores), : sizes[i][0], : sizes[i][1]]
    return [walked[i] for i in range(len(walkers))]


def steps_for(size: tuple[float, float], steps: int | Literal["auto"]) -> int:
    """Return the steps for an image of (H, W) pixels, as the network sees it.

    `auto` (ours) keeps how far scores spread relative to the image: a walk of t steps reaches some sqrt(t) cells, so t goes with
    the area. A power of two near 256 * H * W / (500 * 375), at least 1; powers of two, so that images of about one size have one t.
    """
    if steps != "auto":
        return steps
    return 2 ** max(0, round(math.log2(PUBLISHED_STEPS * size[0] * size[1] / PUBLISHED_AREA)))


def finish(walked: Tensor, config: Walk) -> Tensor:
    """Normalise walked scores float32[C, h, w]: by their maximum, or, with a background among them, to a sum of 1 at every cell."""
    if not walked.numel():
        return walked
    if config.background == "power":
        return walked / (walked.sum(dim=0, keepdim=True) + _EPS)
    most = walked.amax() if config.normalise == "image" else walked.amax(dim=(1, 2), keepdim=True)
    return walked / (most + _EPS)


def _padded(values: Tensor, channels: int, height: int, width: int) -> Tensor:
    c, h, w = values.shape
    return functional.pad(values, (0, width - w, 0, height - h, 0, channels - c))
