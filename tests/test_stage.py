"""Around the work: specs, locks, whole outputs, manifests, errors."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from wsss_core.errors import UserError
from wsss_core.files import atomic_path, read_json, write_json
from wsss_core.stage import Stage, read_spec, run_stage


def spec_at(directory: Path, **changes: Any) -> Path:
    values = {
        "stage": "cams", "id": "0123456789", "revision": 1, "parameters": {"a": 1}, "seed": None, "upstream": {"data": "9876543210"},
        "inputs": {}, "files": {}, "run": {}, "output": str(directory),
    }  # fmt: skip
    write_json(directory / "spec.json", {**values, **changes})
    return directory / "spec.json"


def test_a_manifest_tells_what_was_done(tmp_path: Path) -> None:
    def work(stage: Stage) -> None:
        (stage.resume / "half").write_text("unfinished")
        with stage.write("scores.h5") as path:
            path.write_bytes(b"abc")
        stage.facts["precision"] = "32-true"

    run_stage(spec_at(tmp_path), ("cams",), work, threads=2)
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["outputs"] == {"scores.h5": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert manifest["upstream"] == {"data": "9876543210"}
    assert manifest["precision"] == "32-true"
    assert manifest["packages"]["torch"]
    assert not (tmp_path / "resume").exists()
    assert "done in" in (tmp_path / "log.txt").read_text()


def test_a_failed_stage_has_no_manifest_keeps_its_unfinished_work_and_logs_why(tmp_path: Path) -> None:
    def work(stage: Stage) -> None:
        (stage.resume / "half").write_text("unfinished")
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_stage(spec_at(tmp_path), ("cams",), work, threads=1)
    assert not (tmp_path / "manifest.json").exists()
    assert (tmp_path / "resume" / "half").exists()
    assert "ValueError: a bug" in (tmp_path / "log.txt").read_text()


def test_a_second_process_waits_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    path, calls = spec_at(tmp_path), []

    def work(stage: Stage) -> None:
        calls.append(1)
        time.sleep(0.3)

    both = [threading.Thread(target=run_stage, args=(path, ("cams",), work), kwargs={"threads": 1}) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert calls == [1]


def test_a_stage_is_done_again_once_its_manifest_is_gone(tmp_path: Path) -> None:
    path, calls = spec_at(tmp_path), []
    for _ in range(2):
        run_stage(path, ("cams",), lambda stage: calls.append(1), threads=1)
        (tmp_path / "manifest.json").unlink()
    assert calls == [1, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{", "not a JSON file"), ("[]", "not a stage's spec"), ('{"stage": "cams"}', "missing files, id, inputs"), (None, "cannot be read")],
)
def test_a_bad_spec_is_one_line(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "spec.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=expected):
        read_spec(path)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    path = spec_at(tmp_path)
    (tmp_path / "resume" / "masks").mkdir(parents=True)
    for leftover in (tmp_path / ".scores.h5.123.tmp", tmp_path / "resume/masks/.a.png.123.tmp"):
        leftover.write_text("half")
    run_stage(path, ("cams",), lambda stage: stage.publish_directory("masks"), threads=1)
    assert read_json(tmp_path / "manifest.json")["outputs"] == {}
    assert not list(tmp_path.rglob(".*.tmp"))


def test_a_spec_of_another_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage: expected classifier or segmenter, got 'cams'"):
        run_stage(spec_at(tmp_path), ("classifier", "segmenter"), lambda stage: None)


def test_a_missing_input_names_the_stage_to_run(tmp_path: Path) -> None:
    stage = Stage(read_spec(spec_at(tmp_path, inputs={"model": str(tmp_path / "nowhere")})), 1, 0)
    with pytest.raises(UserError, match="run the stage 'model' first"):
        stage.input("model", "model.json")
    with pytest.raises(UserError, match=r"inputs\.scores: missing"):
        stage.input("scores")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b.txt"
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"


def test_nan_is_written_as_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, float("nan")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [1.5, None]}


def _hold(path: Path, started: Any) -> None:
    def work(stage: Stage) -> None:
        started.set()
        time.sleep(60)

    run_stage(path, ("cams",), work, threads=1)


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    path = spec_at(tmp_path)
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_hold, args=(path, started))
    process.start()
    assert started.wait(20)
    process.kill()
    process.join()
    run_stage(path, ("cams",), lambda stage: None, threads=1)
    assert (tmp_path / "manifest.json").exists()
