"""The plan and the disk: specs, the record of an experiment, its links."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wsss_core.errors import UserError
from wsss_core.files import read_json
from wsss_core.plan import Plan
from wsss_core.results import collect, is_done, state, write_specs


def test_a_record_holds_values_stages_and_figures(planned: Callable[..., Plan], do: Callable[[Plan, str], Path]) -> None:
    plan = planned({"segmenter": None, "classifier": {"epochs": 1}})
    for name in plan.chains[0].all_stages:
        do(plan, name)
    record = read_json(collect(plan.chain_spec_path(plan.chains[0])))
    assert record["values"]["classifier"]["epochs"] == 1
    assert set(record["evaluations"]) == {"classifier", "cams", "refine", "pseudo"}
    assert record["stages"]["cams"]["seconds"] >= 0
    links = {path.name for path in plan.chain_directory(plan.chains[0]).iterdir() if path.is_symlink()}
    assert links == set(plan.chains[0].all_stages)
    assert all(is_done(plan, stage) for stage in plan.stages.values())

    shorter = planned({"segmenter": None, "classifier": {"epochs": 1}, "refine": {"method": "none"}})
    for name in shorter.chains[0].all_stages:
        do(shorter, name)
    collect(shorter.chain_spec_path(shorter.chains[0]))
    assert not (plan.chain_directory(plan.chains[0]) / "refine").is_symlink()


def test_another_plan_leaves_the_spec_of_a_running_one_alone(planned: Callable[..., Plan]) -> None:
    plan = planned()
    before = plan.chain_spec_path(plan.chains[0]).read_bytes()
    other = planned({"classifier": {"lr": 0.5}})
    assert other.chain_spec_path(other.chains[0]) != plan.chain_spec_path(plan.chains[0])
    assert plan.chain_spec_path(plan.chains[0]).read_bytes() == before


def test_specs_that_are_right_are_not_written_again(planned: Callable[..., Plan]) -> None:
    plan = planned()
    paths = list(plan.root.rglob("spec*.json"))
    times = [path.stat().st_mtime_ns for path in paths]
    write_specs(plan)
    assert [path.stat().st_mtime_ns for path in paths] == times


def test_a_record_of_unfinished_stages_is_one_line(planned: Callable[..., Plan]) -> None:
    plan = planned()
    with pytest.raises(UserError, match="cannot be read"):
        collect(plan.chain_spec_path(plan.chains[0]))


def test_a_stopped_stage_will_resume(planned: Callable[..., Plan]) -> None:
    plan = planned()
    stage = plan.chains[0].stages["cams"]
    assert state(plan, stage) == "todo"
    (plan.directory(stage) / "resume").mkdir()
    (plan.directory(stage) / "resume" / "shard").touch()
    assert state(plan, stage) == "part"
