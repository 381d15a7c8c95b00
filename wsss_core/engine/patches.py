"""What a network with patches makes of the patches of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from wsss_core.data.index import DataIndex, Record
from wsss_core.devices import torch_device
from wsss_core.engine.images import images_of, inference_precision, network_inputs
from wsss_core.engine.models import load_model
from wsss_core.errors import UserError
from wsss_core.stage import Stage
from wsss_core.systems.base import PatchSystem


@torch.inference_mode()
def patch_embeddings(stage: Stage, index: DataIndex, records: Sequence[Record]) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield each image uint8[H, W, 3] and the embeddings of its patches, float64[D, h, w]; one pass at the longer side `resize`.

    Raises `UserError` for a model that has no patches.
    """
    torch.set_num_threads(stage.threads)
    trained = load_model(stage.input("model"), torch_device(stage.gpus))
    system, device = trained.system, next(trained.model.parameters()).device
    if not isinstance(system, PatchSystem):
        raise UserError(f"{stage.input('model')}: system {system.config.system} has no patch embeddings")
    for image in images_of(stage, index, records, "patches"):
        (pixels,) = network_inputs(image, system, device, resize=stage.parameters.get("resize"))
        with inference_precision(device):
            embeddings = system.embed(trained.model, pixels)[0]
        yield image, embeddings.cpu().double()
