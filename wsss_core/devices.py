"""Free GPUs of this host for one job: Snakemake counts `resources.gpu`, but which device is free only the host knows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def claim_gpus(count: int) -> Iterator[str]:
    """Hold `count` GPUs (fewer if the host has fewer, none on a host without) and set CUDA_VISIBLE_DEVICES.

    Each device has a lock file in the temporary directory; the kernel drops the lock when the job dies. On a cluster the
    scheduler's choice stands. Yields the device in words, for the manifest.
    """
    import torch

    available = torch.cuda.device_count()
    if available == 0:
        yield "cpu"
        return
    if "SLURM_JOB_ID" in os.environ or "PBS_JOBID" in os.environ or "LSB_JOBID" in os.environ:
        yield _name(min(count, available))
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [n.strip() for n in visible.split(",") if n.strip()] if visible else [str(i) for i in range(available)]
    with contextlib.ExitStack() as stack:
        held = _take_free(names, min(count, len(names)), stack)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
        yield _name(len(held))


def torch_device(gpus: int) -> str:
    """Return the device of a job that may use `gpus` GPUs: "cuda", or "cpu" if that is none or the host has none."""
    import torch

    return "cuda" if gpus and torch.cuda.is_available() else "cpu"


def _name(count: int) -> str:
    import torch

    return f"{count} x {torch.cuda.get_device_name(0)}"


def _open_for_all(path: str, flags: int) -> int:
    """Open a lock file that users share; nothing is ever written, so another user's needs no permission to write."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _take_free(names: list[str], count: int, stack: contextlib.ExitStack) -> list[str]:
    """Lock `count` of the named devices, all or none at a time; wait while too few are free."""
    while True:
        with contextlib.ExitStack() as attempt:
            held = []
            for name in names:
                path = Path(tempfile.gettempdir()) / f"wsss-gpu-{name.replace('/', '_')}.lock"
                file = attempt.enter_context(open(path, opener=_open_for_all))
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held.append(name)
                if len(held) == count:
                    stack.enter_context(attempt.pop_all())
                    return held
        time.sleep(2)
