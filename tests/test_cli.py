"""The command line as a person meets it: help, one-line errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image

from wsss_core.cli import app
from wsss_core.plan import Plan
from wsss_core.results import plan_on_disk, write_specs

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
STAGE_COMMANDS = ("data", "train", "cams", "crf", "pseudo", "predict", "evaluate")


def wsss(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsss_core", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def error_line(*arguments: str | Path) -> str:
    """Run a command that must end with exit code 2 and one line on standard error (after the log lines)."""
    done = wsss(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("wsss: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete(command: str) -> None:
    parsed = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    assert len(parsed.help or "") > 40
    undocumented = [p.name for p in parsed.params if p.name != "help" and not getattr(p, "help", None)]
    assert undocumented == []


def test_help_lists_the_commands() -> None:
    output = wsss("--help").stdout
    assert all(command in output for command in COMMANDS)


@pytest.mark.parametrize("command", STAGE_COMMANDS)
def test_a_missing_or_bad_spec_is_one_line(command: str, tmp_path: Path) -> None:
    assert "cannot be read" in error_line(command, tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text('{"stage": "cams"}')
    assert "bad.json: not a stage's spec" in error_line(command, tmp_path / "bad.json")


@pytest.mark.parametrize("command", ["plan", "gc"])
def test_a_bad_configuration_is_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("experiments: {a: {classifier: {lr: -1}}}")
    assert "c.yaml: experiments.a.classifier.lr: input should be greater than 0" in error_line(command, tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ("collect", "gone.json"),
        ("table", "gone.json"),
        ("figures", "gone.json"),
        ("gallery", "gone.json"),
        ("submission", "gone"),
        ("export", "gone"),
        ("predict", "gone", "gone.jpg"),
        ("predict", "gone"),
        ("plan", "gone.yaml"),
        ("gc", "gone.yaml"),
        ("data", "gone.yaml"),
    ],
)
def test_a_missing_file_is_one_line(arguments: tuple[str, ...]) -> None:
    error_line(*arguments)


def own_images(root: Path, **changes: Any) -> Plan:
    """Four images with tags and masks, as VOC has them, and their plan."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / "data" / folder).mkdir(parents=True)
    names = ["a", "b", "c", "d"]
    for number, name in enumerate(names):
        Image.new("RGB", (48, 40), (60 * number, 90, 30)).save(root / f"data/JPEGImages/{name}.jpg")
        Image.new("L", (48, 40), number % 2 + 1).save(root / f"data/SegmentationClass/{name}.png")
    (root / "data/ImageSets/Segmentation/train.txt").write_text("a\nb\n")
    (root / "data/ImageSets/Segmentation/val.txt").write_text("c\nd\n")
    (root / "data/labels.csv").write_text("image,tags\na,cat\nb,dog\nc,cat\nd,dog\n")
    training = {"backbone": "test_resnet", "weights": "none", "epochs": 1, "batch_size": 2, "crop_size": 32, "resize": None}
    config = {
        "results": str(root / "results"),
        "dataset": {"source": "folder", "name": "own", "root": str(root / "data")},
        "classifier": training,
        "segmenter": {**training, "decoder_channels": 8},
        "experiments": {"crf": {}},
        "run": {"workers": 1},
        **changes,
    }
    (root / "own.yaml").write_text(yaml.safe_dump(config))
    from wsss_core.config import read_config

    plan = plan_on_disk(read_config(root / "own.yaml"))
    write_specs(plan)
    return plan


def spec_of(plan: Plan, name: str) -> Path:
    return plan.directory(plan.chains[0].all_stages[name]) / "spec.json"


def test_a_corrupt_jpeg_is_one_line(tmp_path: Path, do: Callable[[Plan, str], Path]) -> None:
    plan = own_images(tmp_path)
    do(plan, "pseudo")
    broken = tmp_path / "data/JPEGImages/a.jpg"
    for name, command in (("classifier", "train"), ("cams", "cams"), ("refine", "crf"), ("segmenter", "train")):
        (plan.directory(plan.chains[0].all_stages[name]) / "manifest.json").unlink(missing_ok=True)
        whole = broken.read_bytes()
        broken.write_bytes(whole[:200])
        assert "a.jpg: not a readable image" in error_line(command, spec_of(plan, name))
        broken.write_bytes(whole)
    broken.write_bytes(whole[:200])
    done = wsss("data", tmp_path / "own.yaml")
    assert done.returncode == 2
    assert "a.jpg" in done.stdout + done.stderr


def test_a_mask_of_another_size_is_one_line(tmp_path: Path, do: Callable[[Plan, str], Path]) -> None:
    plan = own_images(tmp_path, experiments={"crf": {}, "upper-bound": {"supervision": "masks"}})
    do(plan, "pseudo")
    do(plan, "cams-threshold")
    Image.new("L", (48, 41), 1).save(tmp_path / "data/SegmentationClass/a.png")
    assert "a.png: the mask is 48x41 pixels" in error_line("evaluate", spec_of(plan, "evaluate-cams"))
    assert "48x41" in error_line("evaluate", spec_of(plan, "evaluate-pseudo"))
    upper = plan.directory(plan.chains[1].stages["segmenter"]) / "spec.json"
    assert "48x41" in error_line("train", upper)
    done = wsss("data", tmp_path / "own.yaml")
    assert done.returncode == 2
    assert "a.png" in done.stdout


def test_a_check_of_good_data_prints_statistics(tmp_path: Path) -> None:
    own_images(tmp_path)
    done = wsss("data", tmp_path / "own.yaml")
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout
    assert "dog" in done.stdout


def test_gc_lists_and_removes_what_no_configuration_names(tmp_path: Path, do: Callable[[Plan, str], Path]) -> None:
    plan = own_images(tmp_path)
    kept = do(plan, "data")
    stray = plan.root / "store/cams/0123456789"
    stray.mkdir(parents=True)
    (stray / "scores.h5").write_bytes(b"0" * 1000)
    assert str(stray) in wsss("gc", tmp_path / "own.yaml").stdout
    assert stray.exists()
    assert "removed 1 stage" in wsss("gc", tmp_path / "own.yaml", "--delete").stdout
    assert not stray.exists()
    assert kept.exists()


def test_plan_prints_ids_and_states(tmp_path: Path, do: Callable[[Plan, str], Path]) -> None:
    plan = own_images(tmp_path)
    do(plan, "data")
    output = wsss("plan", tmp_path / "own.yaml").stdout
    assert f"{plan.chains[0].stages['data'].id} done" in output
    assert f"{plan.chains[0].stages['cams'].id} todo" in output


def test_own_images_without_masks_run_to_the_end(tmp_path: Path, do: Callable[[Plan, str], Path]) -> None:
    own_images(tmp_path)
    import shutil

    shutil.rmtree(tmp_path / "data/SegmentationClass")
    from wsss_core.config import read_config

    plan = plan_on_disk(read_config(tmp_path / "own.yaml"))
    write_specs(plan)
    assert json.loads((do(plan, "evaluate-cams") / "figures.json").read_text())["figures"] == []
    assert (do(plan, "predict") / "masks/c.png").is_file()
    assert json.loads((do(plan, "evaluate-segmenter") / "figures.json").read_text())["figures"] == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_memory_once_freed_is_used_again_without_asking_the_system() -> None:
    code = """
import resource
import numpy as np
from wsss_core.__main__ import _keep_freed_memory
_keep_freed_memory()
np.ones(8_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(8_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 1000  # of 15,625 pages
