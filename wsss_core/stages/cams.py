"""The `cams` stage: a trained classifier's class activation maps of the training images."""

from __future__ import annotations

import torch

from wsss_core.config import Cams, validate
from wsss_core.data.index import read_index
from wsss_core.devices import torch_device
from wsss_core.engine.cams import write_scores
from wsss_core.engine.models import load_model, snapshot_directory
from wsss_core.refine.scores import SCORES
from wsss_core.stage import SPEC, Stage


def write_cams(stage: Stage) -> None:
    """Do a cams stage. Output: `scores.h5`, the maps of each training image's classes, with the class scores as `extra/score`."""
    parameters = {key: value for key, value in stage.parameters.items() if key not in ("split", "snapshot", "classifier")}
    config = validate(Cams, parameters, str(stage.output / SPEC))
    index = read_index(stage.input("data"), stage.spec.files.get("root"))
    records = index.split(stage.parameters["split"])
    torch.set_num_threads(stage.threads)
    model, epoch = stage.input("model"), stage.parameters.get("snapshot")
    directory = model if epoch is None else snapshot_directory(model, epoch)
    trained = load_model(directory, torch_device(stage.gpus), stage.parameters.get("classifier"))
    write_scores(stage, trained, index, records, config, stage.output / SCORES, shards=stage.resume, what="cams")
