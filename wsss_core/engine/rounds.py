"""Rounds of pseudo labels that a training makes of its model's own maps: multi-scale maps, threshold, dense CRF."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.swa_utils import update_bn

from wsss_core.config import Cams, OwnLabels
from wsss_core.data.dataset import stable_seed
from wsss_core.data.index import DataIndex
from wsss_core.data.mask_sets import pack_masks, round_archive
from wsss_core.engine.cams import write_scores
from wsss_core.engine.images import inference_precision
from wsss_core.engine.models import TrainedModel
from wsss_core.errors import UserError
from wsss_core.files import write_json
from wsss_core.processes import map_images
from wsss_core.refine.pseudo import make_mask
from wsss_core.refine.threshold import MOST_IMAGES, best_threshold, compare_thresholds
from wsss_core.stage import Stage
from wsss_core.systems.base import Batch, System


@dataclass(frozen=True)
class Moment:
    """Where a training stands between two epochs.

    Attributes
    ----------
    model
        On its device, in training mode or not.
    index
        The data set.
    history
        One row of metrics for each epoch done.
    stage, fabric
        Threads, progress, log and places; processes and devices.
    batches
        Gives the training batches of the epoch to come, on the device: this process's share of them.
    """

    model: nn.Module
    index: DataIndex
    history: Sequence[dict[str, Any]]
    stage: Stage
    fabric: Fabric
    batches: Callable[[], Iterable[Batch]] = tuple


def provide_round(now: Moment, system: System, labels: OwnLabels, epoch: int) -> None:
    """See to it that the pseudo labels of the model after `epoch` epochs are there: make them, if that is now.

    Raises `UserError` if they are gone and the model has learned on.
    """
    archive = round_archive(now.stage.output, epoch)
    if archive.exists():
        return
    if epoch < len(now.history):
        raise UserError(f"{archive}: missing, and the model it was made of is gone; remove {now.stage.output} to train anew")
    make_round(now, system, labels, epoch)


def make_round(now: Moment, system: System, labels: OwnLabels, epoch: int) -> None:
    """Make the pseudo labels of all training images and put them into one archive.

    The maps are those of a copy of the model whose batch statistics were made anew (`recalibrate`; frozen ones lag behind nothing), or of the model as
    it is. Maps, threshold and CRF are those of the stages `cams`, `threshold`, `crf` and `pseudo`; a threshold that `auto` chose lies beside the
    archive, as .json.

    The processes of a job share the images, all with the first one's model; the CRF of each runs in its share of the stage's threads, as
    worker processes. Killed, the work goes on where it was. It draws from torch's generators: the loop seeds them afterwards.
    """
    stage, records = now.stage, now.index.split("train")
    rank, processes = now.fabric.global_rank, now.fabric.world_size
    work = stage.resume / f"round-{epoch:04d}"
    own, masks, what = work / f"maps-{rank}-of-{processes}", work / "masks", f"labels after epoch {epoch}"
    scores, share = own / "scores.h5", records[rank::processes]
    cams = Cams(scales=labels.scales, flip=labels.flip, resize=labels.resize)
    recalibrate = labels.recalibrate and not system.config.keeps_statistics
    model = recalibrated(now, epoch, f"{what}: statistics") if recalibrate else now.model
    share_buffers(model, processes)
    trained = TrainedModel(system, model.eval(), now.index.classes)
    write_scores(stage, trained, now.index, share, cams, scores, shards=own, what=f"{what}: maps")
    places = [(record.id, now.index.image_path(record)) for record in share]
    threads, threshold = max(1, stage.threads // processes), labels.threshold
    if threshold == "auto":
        threshold = _choose_threshold(now, scores, places, threads, what, round_archive(stage.output, epoch).with_suffix(".json"))
    function = partial(make_mask, scores, masks, {"threshold": threshold, "crf": labels.crf})
    counts = np.stack(list(map_images(function, places, threads, stage, f"{what}: masks")))
    empty = sum(not row[1:].any() for row, record in zip(counts, share, strict=True) if record.labels)
    facts = torch.tensor([counts[:, 0].sum(), counts.sum(), empty], dtype=torch.float64, device=now.fabric.device)
    # The sum also waits until every process has written its masks.
    background, pixels, missed = now.fabric.all_reduce(facts, reduce_op="sum").tolist()  # type: ignore[union-attr]
    if now.fabric.is_global_zero:
        stage.log(f"{what}: {background / pixels:.0%} of the pixels background; {missed:.0f} images have classes but no foreground")
        pack_masks(masks, [record.id for record in records], round_archive(stage.output, epoch))
        shutil.rmtree(work)
    now.fabric.barrier()


def recalibrated(now: Moment, epoch: int, what: str) -> nn.Module:
    """Return a copy of the model whose backbone's batch normalisation has the statistics of the training batches of the epoch to come (ours).

    Running statistics are those of the encoder as it was over its last steps: where it moves fast, they are not those of its features, and its maps
    and labels suffer. One pass in training mode, without gradients, gives the mean of the batches' statistics (`update_bn`; no pass
    if the backbone has none). The training itself goes on with those it had: but for its labels it is the same as without, and a resumed one, which
    makes no finished round again, ends the same.
    """
    model = copy.deepcopy(now.model)
    torch.manual_seed(stable_seed("statistics", now.stage.spec.seed, epoch, now.fabric.global_rank))  # stochastic depth
    with inference_precision(now.fabric.device):
        update_bn(now.stage.track((batch["image"] for batch in now.batches()), what), model.get_submodule("features"))
    return model


def _choose_threshold(now: Moment, scores: Path, places: Sequence[tuple[str, Path]], threads: int, what: str, path: Path) -> float:
    """Return the threshold of a round by the label-free rule, on a sample of all processes' images, and write `path`."""
    most = -(-MOST_IMAGES // now.fabric.world_size)
    histogram, images = compare_thresholds(now.stage, scores, places, most, threads, f"{what}: comparing thresholds")
    counted = torch.as_tensor(np.append(histogram, images), device=now.fabric.device)
    counts = now.fabric.all_reduce(counted, reduce_op="sum").cpu().numpy()  # type: ignore[union-attr]
    best = best_threshold(now.stage, counts[:-1].reshape(histogram.shape), int(counts[-1]), f"{what}: ")
    if now.fabric.is_global_zero:
        write_json(path, best)
    return float(best["threshold"])


def share_buffers(model: nn.Module, processes: int) -> None:
    """Give every process the first one's buffers: DDP keeps parameters alike, running statistics only from one forward pass to the next."""
    if processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
