"""The plan and the disk: checksums of what comes from outside, spec files, what is done, readable links, what to collect."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wsss_core.config import Config
from wsss_core.data.sources import checksum
from wsss_core.errors import UserError
from wsss_core.files import read_json, sha256, write_json
from wsss_core.plan import Outside, Plan, PlannedStage, make_plan
from wsss_core.stage import MANIFEST, RESUME, SPEC

EXPERIMENT = "experiment.json"


def plan_on_disk(config: Config) -> Plan:
    """Make the plan of a configuration with the checksums of its data and weights as they are now."""
    content = checksum(config.dataset)

    @functools.cache  # once per file, however many experiments start from it
    def digest(path: str) -> str:
        if not Path(path).is_file():
            raise UserError(f"weights: {path}: no such file; expected 'pretrained', 'none' or a file of weights")
        return sha256(Path(path))

    return make_plan(config, Outside(content["images"], content["masks"], digest))


def write_specs(plan: Plan) -> None:
    """Write every stage's and every experiment's spec file, leaving alone those that are right already."""
    for stage in plan.stages.values():
        _write_if_changed(plan.directory(stage) / SPEC, plan.spec(stage))
    for chain in plan.chains:
        _write_if_changed(plan.chain_spec_path(chain), plan.chain_spec(chain))


def collect(path: Path) -> Path:
    """Gather one experiment and seed: link its stages by readable names, write `experiment.json` with all its figures.

    `path` is the spec beside which both appear. Returns the record's path.
    """
    spec = read_json(path)
    missing = {"name", "seed", "dataset", "values", "stages", "evaluations"} - set(spec)
    if missing:
        raise UserError(f"{path}: not an experiment's spec: missing {', '.join(sorted(missing))}")
    wanted = {*spec["stages"], *(f"evaluate-{subject}" for subject in spec["evaluations"])}
    for link in path.parent.iterdir():
        if link.is_symlink() and link.name not in wanted:
            link.unlink()
    for name, stage in spec["stages"].items():
        manifest = read_json(Path(stage["directory"]) / MANIFEST)
        memory = {key: manifest.get(key) for key in ("peak_memory_mb", "peak_gpu_memory_mb")}
        stage.update(seconds=manifest["wall_seconds"], device=manifest["device"], **memory)
        _link(path.parent / name, Path(stage["directory"]))
    for subject, directory in spec["evaluations"].items():
        _link(path.parent / f"evaluate-{subject}", Path(directory))
        spec["evaluations"][subject] = read_json(Path(directory) / "figures.json")
    write_json(path.parent / EXPERIMENT, spec)
    return path.parent / EXPERIMENT


def is_done(plan: Plan, stage: PlannedStage) -> bool:
    """Whether a stage is complete on disk."""
    return (plan.directory(stage) / MANIFEST).is_file()


def state(plan: Plan, stage: PlannedStage) -> str:
    """Return `done`, `part` (it was stopped and will resume) or `todo`."""
    if is_done(plan, stage):
        return "done"
    resume = plan.directory(stage) / RESUME
    return "part" if resume.is_dir() and any(resume.iterdir()) else "todo"


def unnamed(plans: Iterable[Plan]) -> list[tuple[Path, int]]:
    """Return the stage directories of the plans' data sets that none of the plans names, with their sizes in bytes."""
    plans = list(plans)
    named = {plan.directory(stage).resolve() for plan in plans for stage in plan.stages.values()}
    found = []
    for root in sorted({plan.root for plan in plans}):
        for directory in sorted(root.glob("store/*/*")):
            if directory.is_dir() and directory.resolve() not in named:
                found.append((directory, _size(directory)))
    return found


def delete(directories: Iterable[Path]) -> None:
    """Remove stage directories: the manifest first, so that an interrupted removal leaves no stage that looks complete."""
    for directory in directories:
        (directory / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(directory)


def remove_dangling_links(root: Path) -> int:
    """Remove links in `experiments/` whose stage is gone; return how many."""
    dangling = [p for p in root.glob("experiments/*/*/*") if p.is_symlink() and not p.exists()]
    for link in dangling:
        link.unlink()
    return len(dangling)


def _size(directory: Path) -> int:
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def _link(link: Path, target: Path) -> None:
    """Make or move a relative link, atomically."""
    relative = os.path.relpath(target, link.parent)
    if link.is_symlink() and os.readlink(link) == relative:
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.symlink_to(relative)
    os.replace(temporary, link)


def _write_if_changed(path: Path, values: dict[str, Any]) -> None:
    try:
        if path.exists() and read_json(path) == values:
            return
    except UserError:
        pass
    write_json(path, values)
