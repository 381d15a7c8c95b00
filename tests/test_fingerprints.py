"""Revisions keep up with the code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fingerprints import FILE, MODULES, ROOT, fingerprint

from wsss_core.revisions import REVISIONS


def test_every_stage_has_a_fingerprint() -> None:
    assert set(MODULES) == set(REVISIONS)


@pytest.mark.parametrize("stage", MODULES)
def test_a_changed_stage_has_a_raised_revision_or_a_refreshed_fingerprint(stage: str) -> None:
    known = json.loads(FILE.read_text(encoding="utf-8"))[stage]
    assert known == {"revision": REVISIONS[stage], "fingerprint": fingerprint(stage)}, (
        f"code of stage {stage} changed: raise its revision in wsss_core/revisions.py if its result changes, "
        "then refresh the fingerprint (python tests/fingerprints.py --write)"
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "wsss_core", tmp_path / "wsss_core", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


def test_comments_and_docstrings_do_not_count(copy: Path) -> None:
    edit(copy / "wsss_core/engine/cams.py", "_EPS = 1e-5", "_EPS = 1e-5  # so that no map is divided by zero")
    edit(copy / "wsss_core/engine/cams.py", '"""Divide each map', '"""Divide every map')
    assert fingerprint("cams", copy) == fingerprint("cams")


def test_code_counts_for_the_stages_that_import_it_and_no_other(copy: Path) -> None:
    edit(copy / "wsss_core/refine/crf.py", "def crf_soft(", "UNUSED = 1\n\n\ndef crf_soft(")
    differ = {stage for stage in MODULES if fingerprint(stage, copy) != fingerprint(stage)}
    assert {"crf", "pseudo", "predict"} <= differ
    assert not differ & {"data", "classifier.cam", "segmenter.segment"}
