"""Training on several devices, here two processes on the CPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import prepared, stage_at, work_of
from safetensors.torch import load_file

from wsss_core.data.index import read_index
from wsss_core.data.mask_sets import read_mask_of, round_archive
from wsss_core.plan import Plan

Planned = Callable[..., Plan]
Do = Callable[[Plan, str], Path]
TWO_DEVICES = Path(__file__).parents[1] / "two_devices.py"


def train_on_two(directory: Path) -> pd.DataFrame:
    """Train by the command; return the metrics."""
    command = [sys.executable, str(TWO_DEVICES), "train", str(directory / "spec.json"), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert (directory / "manifest.json").exists()
    return pd.read_csv(directory / "metrics.csv")


def test_two_devices_with_half_the_batch_learn_what_one_does(planned: Planned, do: Do) -> None:
    """Without batch normalisation, whose statistics are those of each device's own images."""
    network: dict[str, Any] = {"backbone": "test_convnext", "output_stride": 32}
    alone = prepared(planned, do, {"classifier": {**network, "batch_size": 4}})
    work_of("classifier")(stage_at(alone))
    both = prepared(planned, do, {"classifier": {**network, "batch_size": 2}})
    history, expected = train_on_two(both), pd.read_csv(alone / "metrics.csv")
    assert history["step"].tolist() == expected["step"].tolist() == [3, 6]
    assert history["total"].tolist() == pytest.approx(expected["total"].tolist(), rel=1e-4)
    weights, wanted = load_file(both / "model.safetensors"), load_file(alone / "model.safetensors")
    assert weights.keys() == wanted.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_two_devices_share_the_rounds_of_isim(planned: Planned, do: Do) -> None:
    own = {
        "system": "isim",
        "epochs": 3,
        "class_epochs": 1,
        "regenerate": 1,
        "schedule": "constant",
        "labels": {"scales": [1.0]},
        "batch_size": 2,
    }
    directory = prepared(planned, do, {"classifier": own})
    history = train_on_two(directory)
    assert history["segmentation"].isna().tolist() == [True, False, False]
    images = read_index(stage_at(directory).input("data"), None).split("train")
    for epoch in (1, 2):
        assert all(read_mask_of(round_archive(directory, epoch), record.id).shape == (64, 64) for record in images)
