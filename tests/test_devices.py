"""Which GPUs a job takes. There is none here: the count and the name are put in its place."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from wsss_core.devices import claim_gpus


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Test GPU")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_gpu_the_cpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with claim_gpus(1) as device:
        assert device == "cpu"


@pytest.mark.usefixtures("two_gpus")
def test_jobs_take_different_devices_and_give_them_back() -> None:
    with claim_gpus(1) as device:
        assert device == "1 x Test GPU"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
        del os.environ["CUDA_VISIBLE_DEVICES"]  # as another job sees the host
        with claim_gpus(1):
            assert os.environ.pop("CUDA_VISIBLE_DEVICES") == "1"
    with claim_gpus(2) as device:
        assert device == "2 x Test GPU"
        assert os.environ.pop("CUDA_VISIBLE_DEVICES") == "0,1"


@pytest.mark.usefixtures("two_gpus")
def test_a_job_waits_until_enough_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = threading.Event()
    first = claim_gpus(1)
    first.__enter__()
    del os.environ["CUDA_VISIBLE_DEVICES"]

    def free_the_first(seconds: float) -> None:
        waited.set()
        first.__exit__(None, None, None)

    monkeypatch.setattr("wsss_core.devices.time.sleep", free_the_first)
    with claim_gpus(2):
        assert waited.is_set()
        assert os.environ.pop("CUDA_VISIBLE_DEVICES") == "0,1"


@pytest.mark.usefixtures("two_gpus")
def test_a_given_choice_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with claim_gpus(2) as device:
        assert device == "1 x Test GPU"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with claim_gpus(1):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
