"""Rounds of pseudo labels that a training makes of its model's own maps: multi-scale maps, threshold, dense CRF."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from wsss_core.config import Cams, OwnLabels
from wsss_core.data.dataset import stable_seed
from wsss_core.data.mask_sets import pack_masks, round_archive
from wsss_core.engine.cams import write_scores
from wsss_core.engine.images import inference_precision
from wsss_core.engine.models import TrainedModel
from wsss_core.errors import UserError
from wsss_core.files import write_json
from wsss_core.processes import map_images
from wsss_core.refine.pseudo import make_mask
from wsss_core.refine.threshold import MOST_IMAGES, best_threshold, compare_thresholds
from wsss_core.systems.base import Run, System


def provide_round(run: Run, system: System, labels: OwnLabels, epoch: int) -> None:
    """See to it that the pseudo labels of the model after `epoch` epochs are there: make them, if that is now.

    Raises `UserError` if they are gone and the model has learned on.
    """
    archive = round_archive(run.stage.output, epoch)
    if archive.exists():
        return
    if epoch < len(run.history):
        raise UserError(f"{archive}: missing, and the model it was made of is gone; remove {run.stage.output} to train anew")
    make_round(run, system, labels, epoch)


def make_round(run: Run, system: System, labels: OwnLabels, epoch: int) -> None:
    """Make the pseudo labels of all training images and put them into one archive.

    The maps are those of a copy of the model whose batch statistics were made anew (`recalibrate`; frozen ones lag behind nothing), or of the model as
    it is. Maps, threshold and CRF are those of the stages `cams`, `threshold`, `crf` and `pseudo`; a threshold that `auto` chose lies beside the
    archive, as .json.

    The processes of a job share the images, all with the first one's model; the CRF of each runs in its share of the stage's threads, as
    worker processes. Killed, the work goes on where it was. It draws from torch's generators: the loop seeds them afterwards.
    """
    stage, records = run.stage, run.index.split("train")
    rank, processes = run.fabric.global_rank, run.fabric.world_size
    work = stage.resume / f"round-{epoch:04d}"
    own, masks, what = work / f"maps-{rank}-of-{processes}", work / "masks", f"labels after epoch {epoch}"
    scores, share = own / "scores.h5", records[rank::processes]
    cams = Cams(scales=labels.scales, flip=labels.flip, resize=labels.resize)
    recalibrate = labels.recalibrate and not system.config.freeze_batch_norm
    model = recalibrated(run, epoch, f"{what}: statistics") if recalibrate else run.model
    share_buffers(model, processes)
    trained = TrainedModel(system, model.eval(), run.index.classes)
    write_scores(stage, trained, run.index, share, cams, scores, shards=own, what=f"{what}: maps")
    places = [(record.id, run.index.image_path(record)) for record in share]
    threads, threshold = max(1, stage.threads // processes), labels.threshold
    if threshold == "auto":
        threshold = _choose_threshold(run, scores, places, threads, what, round_archive(stage.output, epoch).with_suffix(".json"))
    function = partial(make_mask, scores, masks, {"threshold": threshold, "crf": labels.crf})
    counts = np.stack(list(map_images(function, places, threads, stage, f"{what}: masks")))
    empty = sum(not row[1:].any() for row, record in zip(counts, share, strict=True) if record.labels)
    facts = torch.tensor([counts[:, 0].sum(), counts.sum(), empty], dtype=torch.float64, device=run.fabric.device)
    # The sum also waits until every process has written its masks.
    background, pixels, missed = run.fabric.all_reduce(facts, reduce_op="sum").tolist()  # type: ignore[union-attr]
    if run.fabric.is_global_zero:
        stage.log(f"{what}: {background / pixels:.0%} of the pixels background; {missed:.0f} images have classes but no foreground")
        pack_masks(masks, [record.id for record in records], round_archive(stage.output, epoch))
        shutil.rmtree(work)
    run.fabric.barrier()


def recalibrated(run: Run, epoch: int, what: str) -> nn.Module:
    """Return a copy of the model whose backbone's batch normalisation has the statistics of the training batches of the epoch to come (ours).

    Running statistics are those of the encoder as it was over its last steps: where it moves fast, they are not those of its features, and its maps
    and labels suffer. One pass in training mode, without gradients, gives the mean of the batches' statistics (`update_bn`; no pass
    if the backbone has none). The training itself goes on with those it had: but for its labels it is the same as without, and a resumed one, which
    makes no finished round again, ends the same.
    """
    model = copy.deepcopy(run.model)
    torch.manual_seed(stable_seed("statistics", run.stage.spec.seed, epoch, run.fabric.global_rank))  # stochastic depth
    with inference_precision(run.fabric.device):
        update_bn(run.stage.track((batch["image"] for batch in run.batches()), what), model.get_submodule("features"))
    return model


def _choose_threshold(run: Run, scores: Path, places: Sequence[tuple[str, Path]], threads: int, what: str, path: Path) -> float:
    """Return the threshold of a round by the label-free rule, on a sample of all processes' images, and write `path`."""
    most = -(-MOST_IMAGES // run.fabric.world_size)
    histogram, images = compare_thresholds(run.stage, scores, places, most, threads, f"{what}: comparing thresholds")
    counted = torch.as_tensor(np.append(histogram, images), device=run.fabric.device)
    counts = run.fabric.all_reduce(counted, reduce_op="sum").cpu().numpy()  # type: ignore[union-attr]
    best = best_threshold(run.stage, counts[:-1].reshape(histogram.shape), int(counts[-1]), f"{what}: ")
    if run.fabric.is_global_zero:
        write_json(path, best)
    return float(best["threshold"])


def share_buffers(model: nn.Module, processes: int) -> None:
    """Give every process the first one's buffers: DDP keeps parameters alike, running statistics only from one forward pass to the next."""
    if processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
