"""The process pool: order, bounds, errors, and what is left when things go wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from wsss_core.errors import UserError
from wsss_core.processes import _AHEAD, map_images
from wsss_core.stage import Spec, Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(Spec("crf", "0123456789", 1, {}, None, {}, {}, {}, {}, tmp_path), threads=2, gpus=0)


def square_slowly(number: int) -> tuple[int, int]:
    time.sleep(0.03 if number == 0 else 0.0)  # the first result is the last to be ready
    return number * number, os.getpid()


def refuse_seven(number: int) -> int:
    if number == 7:
        raise UserError("images/7.jpg: not a readable image")
    return number


def crash_at_three(number: int) -> int:
    if number == 3:
        raise ZeroDivisionError("three")
    return number


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave_a_mark(folder: Path, number: int) -> int:
    (folder / str(number)).touch()
    return number


def environment(number: int) -> tuple[str | None, bool, int]:
    return os.environ.get("OMP_NUM_THREADS"), "torch" in sys.modules, os.getpid()


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_results_come_in_order(stage: Stage, processes: int) -> None:
    results = list(map_images(square_slowly, range(40), processes, stage, "squaring"))
    assert [value for value, _ in results] == [n * n for n in range(40)]
    assert (os.getpid() in {pid for _, pid in results}) == (processes <= 1)


def test_no_items(stage: Stage) -> None:
    assert list(map_images(square_slowly, [], 2, stage, "squaring")) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_of_a_worker_reach_the_parent(stage: Stage, processes: int) -> None:
    seen = []
    with pytest.raises(UserError, match=r"^images/7\.jpg: not a readable image$"):
        for number in map_images(refuse_seven, range(20), processes, stage, "reading"):
            seen.append(number)
    assert seen == list(range(7))
    with pytest.raises(ZeroDivisionError, match="three"):
        list(map_images(crash_at_three, range(20), processes, stage, "reading"))


def test_a_killed_worker_is_an_error_not_a_hang(stage: Stage) -> None:
    with pytest.raises(RuntimeError, match="a worker process died"):
        list(map_images(die, range(4), 2, stage, "refining images"))


def test_work_stays_a_few_images_ahead(stage: Stage, tmp_path: Path) -> None:
    from functools import partial

    marks = tmp_path / "marks"
    marks.mkdir()
    results = map_images(partial(leave_a_mark, marks), range(200), 2, stage, "marking")
    assert next(results) == 0
    time.sleep(0.3)
    assert len(list(marks.iterdir())) <= _AHEAD * 2
    results.close()  # type: ignore[attr-defined]
    assert len(list(marks.iterdir())) <= _AHEAD * 2


def test_workers_have_one_thread_and_the_parents_setting_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    results = list(map_images(environment, range(8), 2, stage, "looking"))
    assert all(pid != os.getpid() and threads == "1" for threads, _, pid in results)
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_work_in_processes_loads_no_torch() -> None:
    modules = ", ".join(f"wsss_core.stages.{name}" for name in ("affinity_labels", "crf", "evaluate", "pseudo", "threshold"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


SCRIPT = """
import os, pathlib, signal, sys, time
from functools import partial
from wsss_core.processes import map_images
from wsss_core.stage import Spec, Stage

def work(folder, number):
    (folder / f"pid{os.getpid()}").touch()
    time.sleep(0.05)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as the tests may be, ignores it
    folder = pathlib.Path(sys.argv[1])
    stage = Stage(Spec("crf", "0", 1, {}, None, {}, {}, {}, {}, folder), 2, 0)
    for _ in map_images(partial(work, folder), range(10_000), 2, stage, "working"):
        (folder / "started").touch()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_orphans(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stderr=subprocess.PIPE)
    _wait_until((tmp_path / "started").exists)
    workers = [int(path.name.removeprefix("pid")) for path in tmp_path.glob("pid*")]
    assert workers
    parent.send_signal(how)
    message = parent.communicate(timeout=20)[1]
    _wait_until(lambda: not any(_alive(pid) for pid in workers))
    if how == signal.SIGINT:
        assert message.count(b"Traceback") == 1  # the workers are quiet


def test_progress_counts_what_was_done_before(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(stage, "track", lambda items, what, total, done: calls.append((what, total, done)) or items)
    for processes in (1, 2):
        assert len(list(map_images(np.sqrt, [1, 4, 9], processes, stage, "refining images", done=64))) == 3
    assert calls == [("refining images", 67, 64)] * 2


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until(condition: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
