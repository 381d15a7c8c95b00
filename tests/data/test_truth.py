"""Pixel masks are for evaluation alone."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wsss_core.plan import Plan

PACKAGE = Path(__file__).parents[2] / "wsss_core"
MAY_READ = {"stages/evaluate.py", "report/gallery.py", "data/check.py", "systems/segment.py"}


def test_only_evaluation_the_gallery_the_check_and_the_upper_bound_import_the_masks() -> None:
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names] if isinstance(node, ast.Import) else []
            )
            names = [f"{node.module}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else []
            if "wsss_core.data.truth" in [*modules, *names]:
                importers.add(str(path.relative_to(PACKAGE)))
    assert importers == MAY_READ


def test_no_other_module_asks_where_a_mask_lies() -> None:
    askers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "mask" and isinstance(node.ctx, ast.Load)
    }
    assert {path for path in askers if not path.startswith("data/")} <= MAY_READ


AUTO = {"method": "thresholds"}  # both thresholds are those of the label-free rule


@pytest.mark.parametrize("refine", [{}, {"method": "none"}, {"method": "affinity", "crf": "none", "labels": AUTO}, {"method": "boundary"}])
def test_weak_supervision_ends_the_same_without_any_mask(
    planned: Callable[..., Plan], do: Callable[[Plan, str], Path], refine: dict[str, Any]
) -> None:
    networks = {"epochs": 1, "batch_size": 4, "resize": None, "crop_size": 64}
    plan = planned({"classifier": {"epochs": 1}, "refine": {"affinity": networks, "boundary": networks, **refine}})
    pseudo = do(plan, "pseudo")
    masks = {path.name: path.read_bytes() for path in (pseudo / "masks").iterdir()}
    for stage in plan.chains[0].stages.values():
        if stage.kind == "data":
            shutil.rmtree(plan.directory(stage) / "masks")
        else:
            shutil.rmtree(plan.directory(stage))
    for directory in (plan.root / "store").glob("evaluate/*"):
        shutil.rmtree(directory)
    from wsss_core.results import write_specs

    write_specs(plan)
    again = do(plan, "segmenter")
    assert (again / "model.safetensors").is_file()
    assert {path.name: path.read_bytes() for path in (pseudo / "masks").iterdir()} == masks
