"""The real DAG, end to end and tiny, and what is done again after each class of change."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY

from wsss_core.config import overlay

ROOT = Path(__file__).parents[2]
WALK = {"threshold", "affinity_labels", "affinity", "boundary", "walk"}
STAGES = {"data", "classifier", "cams", "crf", "pseudo", "segmenter", "predict", "evaluate"} | WALK
BELOW_CRF = Counter({"crf": 1, "pseudo": 1, "segmenter": 1, "predict": 1, "evaluate": 3})


class Project:
    """A copy of the workflow and the package that a test may edit."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("Snakefile", "config.yaml"):
            shutil.copy(ROOT / name, directory / name)
        for name in ("workflow", "wsss_core", "profiles", "envs"):
            shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))

    def configure(self, changes: dict[str, Any] | None = None) -> None:
        (self.directory / "test.yaml").write_text(yaml.safe_dump(overlay(TINY, changes or {})), encoding="utf-8")

    def edit(self, file: str, before: str, after: str) -> None:
        path = self.directory / file
        text = path.read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, after), encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "test.yaml", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.directory), "OMP_NUM_THREADS": "1"}

    def snakemake(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            self.command(*arguments), cwd=self.directory, env=self.environment, capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        return output

    def jobs(self, *arguments: str) -> Counter[str]:
        """How many jobs of each rule a dry run would do."""
        output = self.snakemake("--dry-run", *arguments)
        table = re.search(r"Job stats:\n.*?\n-+ +-+\n(.*?)\n\n", output, re.DOTALL)
        rows = [line.split() for line in table[1].splitlines()] if table else []
        return Counter({name: int(count) for name, count in rows if name != "total"})

    def stage_jobs(self) -> Counter[str]:
        return Counter({name: count for name, count in self.jobs().items() if name in STAGES})

    def figures(self) -> dict[str, Any]:
        return json.loads((self.directory / "results/shapes/experiments/crf/seed0/experiment.json").read_text())["evaluations"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose tiny workflow has run. Tests that change it change it back."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.configure()
    project.snakemake()
    return project


@pytest.mark.slow
def test_the_whole_workflow_leaves_its_outputs(finished: Project) -> None:
    results = finished.directory / "results"
    assert (results / "tables/shapes.csv").is_file()
    assert "crf" in (results / "tables/shapes.md").read_text()
    assert (results / "figures/shapes/galleries/crf/index.html").is_file()
    assert list((results / "figures/shapes/curves").glob("*.svg"))
    links = results / "shapes/experiments/crf/seed0"
    assert len(list((links / "pseudo/masks").glob("*.png"))) == 12
    assert len(list((links / "predict/masks").glob("*.png"))) == 6
    assert not os.path.isabs(os.readlink(links / "segmenter"))
    manifests = list(results.glob("shapes/store/*/*/manifest.json"))
    assert len(manifests) == 13
    assert all(json.loads(path.read_text())["outputs"] for path in manifests)
    assert not list(results.glob("shapes/store/*/*/resume"))
    assert set(finished.figures()) == {"classifier", "cams", "refine", "pseudo", "segmenter"}


@pytest.mark.slow
def test_nothing_changed_nothing_to_do(finished: Project) -> None:
    assert finished.jobs() == Counter()


@pytest.mark.slow
def test_a_comment_reruns_nothing(finished: Project) -> None:
    finished.edit("wsss_core/engine/cams.py", "_EPS = 1e-5", "_EPS = 1e-5  # a comment")
    finished.edit("workflow/rules/cams.smk", "# Class", "# The class")
    assert finished.jobs() == Counter()


@pytest.mark.slow
def test_a_crf_parameter_reruns_the_crf_and_what_is_below_and_back_nothing(finished: Project) -> None:
    before = finished.figures()
    finished.configure({"refine": {"background": 0.4}})
    assert finished.stage_jobs() == BELOW_CRF
    finished.snakemake()
    assert finished.jobs() == Counter()
    assert finished.figures()["refine"] != before["refine"]
    assert finished.figures()["cams"] == before["cams"]
    finished.configure()
    assert finished.stage_jobs() == Counter()
    finished.snakemake()
    assert finished.figures() == before


@pytest.mark.slow
def test_a_raised_revision_reruns_its_stage_and_what_is_below(finished: Project) -> None:
    finished.edit("wsss_core/revisions.py", '"crf": 1', '"crf": 2')
    assert finished.stage_jobs() == BELOW_CRF
    finished.edit("wsss_core/revisions.py", '"crf": 2', '"crf": 1')
    assert finished.stage_jobs() == Counter()


@pytest.mark.slow
def test_a_second_experiment_shares_what_it_can(finished: Project) -> None:
    finished.configure({"experiments": {"plain": {"refine": {"method": "none"}}}})
    assert finished.stage_jobs() == Counter({"pseudo": 1, "segmenter": 1, "predict": 1, "evaluate": 2})
    finished.configure()


@pytest.mark.slow
def test_walks_share_classifier_and_labels(finished: Project) -> None:
    walks = {name: {"refine": {"method": name}, "segmenter": None} for name in ("affinity", "boundary")}
    finished.configure({"experiments": walks})
    shared = {"affinity_labels": 1, "affinity": 1, "boundary": 1}
    assert finished.stage_jobs() == Counter({**shared, "walk": 2, "threshold": 2, "crf": 2, "pseudo": 2, "evaluate": 6})
    finished.snakemake()
    assert finished.jobs() == Counter()
    links = finished.directory / "results/shapes/experiments"
    assert (links / "boundary/seed0/walk/boundary.h5").is_file()
    assert not (links / "affinity/seed0/walk/boundary.h5").exists()
    assert len(list((links / "affinity/seed0/affinity-labels/labels").glob("*.png"))) == 12
    record = json.loads((links / "affinity/seed0/experiment.json").read_text())
    assert [figure["rule"] for figure in record["evaluations"]["walk"]["figures"]] == ["auto", "oracle"]
    finished.configure({"refine": {"walk": {"beta": 2}}, "experiments": walks})
    below = {"walk": 2, "threshold": 2, "crf": 2, "pseudo": 2, "evaluate": 6}
    assert finished.stage_jobs() == Counter(below)
    finished.configure()


@pytest.mark.slow
def test_the_report_is_one_file(finished: Project) -> None:
    finished.snakemake("--report", "results/report.html")
    assert (finished.directory / "results/report.html").stat().st_size > 100_000


@pytest.mark.slow
def test_a_bad_configuration_is_one_clear_line(finished: Project) -> None:
    finished.configure({"experiments": {"crf": {"clasifier": {}}}})
    output = finished.snakemake("--dry-run", code=1)
    assert "test.yaml: experiments.crf.clasifier: unknown key; did you mean 'classifier'?" in output
    finished.configure({"tables": {"t": {"rows": "classifier.lr", "compare": "fast"}}})
    assert "tables.t: compare: no row is called 'fast'; valid: " in finished.snakemake("--dry-run", code=1)
    finished.configure()


@pytest.mark.slow
def test_a_killed_workflow_goes_on_and_ends_the_same(finished: Project, tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.configure({"segmenter": None, "classifier": {"epochs": 2}})
    process = subprocess.Popen(
        project.command(),
        cwd=tmp_path,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    checkpoint = tmp_path / "results/shapes/store/classifier"
    deadline = time.monotonic() + 120
    while not list(checkpoint.glob("*/resume/checkpoint.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(checkpoint.glob("*/manifest.json"))
    project.snakemake("--unlock")
    project.snakemake()
    assert "resumes after epoch" in next(checkpoint.glob("*/log.txt")).read_text()
    figures = project.figures()
    expected = finished.figures()
    assert {name: figures[name] for name in ("classifier", "cams", "refine", "pseudo")} == {
        name: expected[name] for name in ("classifier", "cams", "refine", "pseudo")
    }
