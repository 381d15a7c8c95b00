"""The `predict` stage: a trained segmenter labels the images of a split."""

from __future__ import annotations

from pathlib import Path

import torch

from wsss_core.config import Predict, validate
from wsss_core.data.images import save_mask
from wsss_core.data.index import DataIndex, Record, read_index
from wsss_core.devices import torch_device
from wsss_core.engine.images import images_of
from wsss_core.engine.predictor import Predictor
from wsss_core.files import atomic_path
from wsss_core.refine.predictions import present_classes, refine_predictions
from wsss_core.stage import SPEC, Stage
from wsss_core.store import ScoreWriter, shard_ranges

_SHARD = 64


def predict_stage(stage: Stage) -> None:
    """Do a predict stage. Output: `masks/<id>.png` for each image of the split.

    Parameters of the stage: those of `Predict`, with any split; `image_labels`: the image-level labels are known, and no other class gets a pixel.
    With a CRF the network's probabilities go to a store first, so that the CRF can run in `stage.threads` processes.
    """
    parameters = {key: value for key, value in stage.parameters.items() if key not in ("split", "image_labels")}
    config = validate(Predict, parameters, str(stage.output / SPEC))
    known = bool(stage.parameters.get("image_labels"))
    index = read_index(stage.input("data"), stage.spec.files.get("root"))
    torch.set_num_threads(stage.threads)
    predictor = Predictor(stage.input("model"), config, torch_device(stage.gpus))
    folder = stage.resume / "masks"
    folder.mkdir(exist_ok=True)
    todo = [record for record in index.split(stage.parameters["split"]) if not (folder / f"{record.id}.png").exists()]
    if config.crf == "none":
        images = images_of(stage, index, todo, "predict")
        for record, image in zip(todo, images, strict=True):
            with atomic_path(folder / f"{record.id}.png") as temporary:
                save_mask(temporary, predictor.labels(image, record.labels if known else None))
    else:
        for begin, end in shard_ranges(len(todo), _SHARD):
            _predict_with_crf(stage, predictor, index, todo[begin:end], folder, known)
    stage.publish_directory("masks")


def _predict_with_crf(stage: Stage, predictor: Predictor, index: DataIndex, records: list[Record], folder: Path, known: bool) -> None:
    """Predict some images and refine them; between the two, what the CRF needs lies in a store."""
    scores = stage.resume / "probabilities.h5"
    images = images_of(stage, index, records, "predict")
    with ScoreWriter(scores, index.num_classes) as writer:
        for record, image in zip(records, images, strict=True):
            probabilities = predictor.probabilities(image, record.labels if known else None)
            present = present_classes(probabilities)
            writer.add(record.id, probabilities[present], present, image.shape[:2])
    places = [(record.id, index.image_path(record)) for record in records]
    refine_predictions(stage, scores, predictor.config.crf, places, folder)
