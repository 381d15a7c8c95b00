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


def one_and_two(planned: Planned, do: Do, system: dict[str, Any]) -> tuple[Path, Path, pd.DataFrame]:
    """Train on one device, and on two with half the batch, which leads to the same; without batch normalisation, whose statistics
    are those of each device's own images. Return both directories and the metrics of the two.
    """
    network = {"backbone": "test_convnext", "output_stride": 32, **system}
    alone = prepared(planned, do, {"classifier": {**network, "batch_size": 4}})
    work_of("classifier")(stage_at(alone))
    both = prepared(planned, do, {"classifier": {**network, "batch_size": 2}})
    return alone, both, train_on_two(both)


def test_two_devices_with_half_the_batch_learn_what_one_does(planned: Planned, do: Do) -> None:
    alone, both, history = one_and_two(planned, do, {})
    expected = pd.read_csv(alone / "metrics.csv")
    assert history["step"].tolist() == expected["step"].tolist() == [3, 6]
    assert history["total"].tolist() == pytest.approx(expected["total"].tolist(), rel=1e-4)
    weights, wanted = load_file(both / "model.safetensors"), load_file(alone / "model.safetensors")
    assert weights.keys() == wanted.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_two_devices_make_the_pseudo_labels_that_one_makes(planned: Planned, do: Do) -> None:
    """ISIM's decoder has batch normalisation, but rests until the first round."""
    labels = {"scales": [1.0], "threshold": 0.6, "crf": "none"}
    own = {"system": "isim", "epochs": 3, "class_epochs": 1, "regenerate": 1, "schedule": "constant", "labels": labels}
    alone, both, history = one_and_two(planned, do, own)
    assert history["segmentation"].isna().tolist() == [True, False, False]
    for record in read_index(stage_at(both).input("data"), None).split("train"):
        mask, expected = (read_mask_of(round_archive(directory, 1), record.id) for directory in (both, alone))
        assert (mask == expected).mean() > 0.99
        assert (mask > 0).any() == bool(record.labels)
        assert read_mask_of(round_archive(both, 2), record.id).shape == (64, 64)
