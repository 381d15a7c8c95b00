"""Rounds of pseudo labels that a training makes of its model's own maps: multi-scale maps, threshold, dense CRF."""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import torch
from torch import nn

from wsss_core.cams import write_scores
from wsss_core.config import Cams, OwnLabels
from wsss_core.data.mask_sets import pack_masks, round_archive
from wsss_core.engine.models import TrainedModel
from wsss_core.errors import UserError
from wsss_core.processes import map_images
from wsss_core.refine.pseudo_stage import make_mask
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

    The processes of a job share the images, all with the first one's model; the CRF of each runs in its share of the stage's threads, as
    worker processes. Killed, the work goes on where it was. It draws from torch's generators: the loop seeds them afterwards.
    """
    stage, records = run.stage, run.index.split("train")
    rank, processes = run.fabric.global_rank, run.fabric.world_size
    work = stage.resume / f"round-{epoch:04d}"
    own, masks, what = work / f"maps-{rank}-of-{processes}", work / "masks", f"labels after epoch {epoch}"
    scores, share = own / "scores.h5", records[rank::processes]
    cams = Cams(scales=labels.scales, flip=labels.flip, resize=labels.resize)
    share_buffers(run.model, processes)
    trained = TrainedModel(system, run.model.eval(), run.index.classes)
    write_scores(stage, trained, run.index, share, cams, scores, shards=own, what=f"{what}: maps")
    function = partial(make_mask, scores, masks, {"threshold": labels.threshold, "crf": labels.crf})
    places = [(record.id, run.index.image_path(record)) for record in share]
    counts = np.stack(list(map_images(function, places, max(1, stage.threads // processes), stage, f"{what}: masks")))
    empty = sum(not row[1:].any() for row, record in zip(counts, share, strict=True) if record.labels)
    facts = torch.tensor([counts[:, 0].sum(), counts.sum(), empty], dtype=torch.float64, device=run.fabric.device)
    # The sum also waits until every process has written its masks.
    background, pixels, missed = run.fabric.all_reduce(facts, reduce_op="sum").tolist()  # type: ignore[union-attr]
    if run.fabric.is_global_zero:
        stage.log(f"{what}: {background / pixels:.0%} of the pixels background; {missed:.0f} images have classes but no foreground")
        pack_masks(masks, [record.id for record in records], round_archive(stage.output, epoch))
        shutil.rmtree(work)
    run.fabric.barrier()


def share_buffers(model: nn.Module, processes: int) -> None:
    """Give every process the first one's buffers: DDP keeps parameters alike, running statistics only from one forward pass to the next."""
    if processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
