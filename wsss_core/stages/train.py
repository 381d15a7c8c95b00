"""The stages that train: `classifier`, `affinity`, `boundary` and `segmenter`."""

from __future__ import annotations

import pandas as pd
import torch

from wsss_core.data.index import read_index
from wsss_core.engine.loop import METRICS, Fit
from wsss_core.engine.models import save_model
from wsss_core.files import write_text
from wsss_core.stage import SPEC, Stage
from wsss_core.systems import make_system


def train(stage: Stage) -> None:
    """Do a stage that trains: train the system of the spec and save the model and its metrics.

    Outputs: `model.safetensors`, `model.json`, `metrics.csv` (one row per epoch) and, if asked for, `snapshots/` and `tensorboard/`; of a
    system that makes itself pseudo labels, `rounds/epoch-<epochs before it>.zip`.
    """
    seed = stage.spec.seed or 0
    index = read_index(stage.input("data"), stage.spec.files.get("root"))
    parameters = dict(stage.parameters)
    if "weights" in stage.spec.files:
        parameters["weights"] = stage.spec.files["weights"]
    system = make_system(parameters, index.num_classes, str(stage.output / SPEC))
    torch.manual_seed(seed)
    torch.set_num_threads(stage.threads)
    model = system.build()
    system.start(model, stage.spec.inputs)
    history = Fit(stage, system, model, index, seed).run()
    if history is not None:
        save_model(stage.output, model, stage.parameters, index.classes)
        write_text(stage.output / METRICS, pd.DataFrame(history).to_csv(index=False))
