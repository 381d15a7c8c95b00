"""What many tests share: a tiny configuration on made images and a quick way to do its stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from wsss_core.config import Config, load_config, overlay
from wsss_core.plan import Plan
from wsss_core.results import plan_on_disk, write_specs
from wsss_core.stage import Stage, read_spec, run_stage

TINY: dict[str, Any] = {
    "dataset": {"source": "shapes", "size": 64, "train": 12, "val": 6, "classes": 3},
    "classifier": {
        "backbone": "test_resnet",
        "weights": "none",
        "epochs": 2,
        "batch_size": 4,
        "crop_size": 64,
        "resize": None,
        "output_stride": 16,
    },
    "cams": {"scales": [1.0, 0.5]},
    "segmenter": {
        "backbone": "test_resnet",
        "weights": "none",
        "epochs": 1,
        "batch_size": 4,
        "crop_size": 64,
        "resize": None,
        "decoder_channels": 16,
    },
    "experiments": {"crf": {}},
    "report": {"gallery": 2},
    "run": {"workers": 0, "threads": 2},
}


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """A configuration that runs in seconds, with changes laid over it; its results go to the test's own directory."""

    def make(changes: dict[str, Any] | None = None) -> Config:
        return load_config(overlay({**TINY, "results": str(tmp_path / "results")}, changes or {}), "tiny.yaml")

    return make


@pytest.fixture
def planned(tiny: Callable[..., Config]) -> Callable[..., Plan]:
    """The plan of a tiny configuration, its specs written."""

    def make(changes: dict[str, Any] | None = None) -> Plan:
        plan = plan_on_disk(tiny(changes))
        write_specs(plan)
        return plan

    return make


@pytest.fixture
def do() -> Callable[[Plan, str], Path]:
    """Do the stage of that name of the first experiment, upstream ones first; return its directory."""

    def run(plan: Plan, name: str) -> Path:
        target = plan.chains[0].all_stages[name]
        wanted = [stage for stage in plan.stages.values() if stage is target or _builds_on(target, stage)]
        for stage in wanted:
            directory = plan.directory(stage)
            if not (directory / "manifest.json").exists():
                run_stage(directory / "spec.json", (stage.kind,), work_of(stage.kind), threads=1)
        return plan.directory(target)

    return run


def _builds_on(stage: Any, other: Any) -> bool:
    return any(each is other or _builds_on(each, other) for each in stage.upstream.values())


def work_of(kind: str) -> Callable[[Stage], None]:
    """The function that does a kind of stage."""
    from wsss_core.stages.affinity_labels import make_affinity_labels
    from wsss_core.stages.cams import write_cams
    from wsss_core.stages.crf import refine_with_crf
    from wsss_core.stages.data import prepare
    from wsss_core.stages.evaluate import evaluate
    from wsss_core.stages.predict import predict_stage
    from wsss_core.stages.pseudo import make_pseudo_masks
    from wsss_core.stages.threshold import choose_threshold
    from wsss_core.stages.train import train
    from wsss_core.stages.walk import walk_scores

    return {
        "data": prepare,
        "classifier": train,
        "cams": write_cams,
        "threshold": choose_threshold,
        "affinity-labels": make_affinity_labels,
        "affinity": train,
        "boundary": train,
        "walk": walk_scores,
        "crf": refine_with_crf,
        "pseudo": make_pseudo_masks,
        "segmenter": train,
        "predict": predict_stage,
        "evaluate": evaluate,
    }[kind]


def stage_at(directory: Path, threads: int = 1) -> Stage:
    """A stage as `run_stage` hands it to its work."""
    return Stage(read_spec(directory / "spec.json"), threads, 0)


def metrics(directory: Path) -> pd.DataFrame:
    """The metrics of a training, without its speed."""
    return pd.read_csv(directory / "metrics.csv").drop(columns="images_per_second")


def prepared(planned: Callable[..., Plan], do: Callable[[Plan, str], Path], changes: dict[str, Any] | None = None) -> Path:
    """The directory of a classifier that is ready to be trained."""
    plan = planned(changes)
    do(plan, "data")
    return plan.directory(plan.chains[0].stages["classifier"])
