"""What a classifier makes of a split: class probabilities and the embeddings of its images."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from wsss_core.config import Cams
from wsss_core.data.index import DataIndex
from wsss_core.devices import torch_device
from wsss_core.engine.cams import multiscale_cams
from wsss_core.engine.images import images_of
from wsss_core.engine.models import load_model
from wsss_core.nn.backbones import Features
from wsss_core.stage import Stage


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
    images = images_of(stage, index, records, "classify")
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
