"""The plan: what shares work, what a change reruns, what never enters an id."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from wsss_core import plan as plan_module
from wsss_core.config import Config
from wsss_core.plan import Chain, Outside, Plan, make_plan


def chain_of(config: Config, outside: Outside | None = None) -> Chain:
    return make_plan(config, outside or Outside()).chains[0]


def changed(before: Chain, after: Chain) -> set[str]:
    names = before.all_stages.keys() | after.all_stages.keys()
    ids = [{name: stage.id for name, stage in chain.all_stages.items()} for chain in (before, after)]
    return {name for name in names if ids[0].get(name) != ids[1].get(name)}


FROM_CRF = {"refine", "pseudo", "segmenter", "predict", "evaluate-refine", "evaluate-pseudo", "evaluate-segmenter"}
FROM_CAMS = FROM_CRF | {"cams", "evaluate-cams"}
FROM_CLASSIFIER = FROM_CAMS | {"classifier", "evaluate-classifier"}


@pytest.mark.parametrize(
    ("change", "reruns"),
    [
        ({}, set()),
        ({"dataset": {"seed": 1}}, FROM_CLASSIFIER | {"data"}),
        ({"classifier": {"lr": 0.123}}, FROM_CLASSIFIER),
        ({"seeds": [5]}, FROM_CLASSIFIER),
        ({"cams": {"flip": False}}, FROM_CAMS),
        ({"refine": {"crf": "labels"}}, FROM_CRF),
        ({"pseudo": {"crf": "labels"}}, FROM_CRF - {"refine", "evaluate-refine"}),
        ({"segmenter": {"epochs": 3}}, {"segmenter", "predict", "evaluate-segmenter"}),
        ({"predict": {"flip": False}}, {"predict", "evaluate-segmenter"}),
        ({"evaluate": {"thresholds": 10}}, {"evaluate-cams", "evaluate-refine"}),
        ({"run": {"workers": 7, "threads": 3, "gpus": 4, "tensorboard": True}}, set()),
        ({"report": {"gallery": 3}, "tables": {"t": {}}}, set()),
        ({"dataset": {"name": "other"}}, set()),
    ],
)
def test_a_change_reruns_exactly_what_it_should(tiny: Callable[..., Config], change: dict[str, Any], reruns: set[str]) -> None:
    assert changed(chain_of(tiny()), chain_of(tiny(change))) == reruns


def test_experiments_share_a_prefix(tiny: Callable[..., Config]) -> None:
    plan = make_plan(tiny({"experiments": {"crf": {}, "plain": {"refine": {"method": "none"}}}}), Outside())
    first, second = plan.chains
    shared = {name for name in second.stages if first.stages[name].id == second.stages[name].id}
    assert shared == {"data", "classifier", "cams"}
    assert sum(stage.kind == "classifier" for stage in plan.stages.values()) == 1


def test_the_upper_bound_trains_on_masks_and_has_no_classifier(tiny: Callable[..., Config]) -> None:
    chain = chain_of(tiny({"experiments": {"crf": {"supervision": "masks"}}}))
    assert list(chain.stages) == ["data", "segmenter", "predict"]
    assert chain.stages["segmenter"].parameters["supervision"] == "masks"


def test_other_masks_change_evaluations_alone(tiny: Callable[..., Config]) -> None:
    before, after = (chain_of(tiny(), Outside(images="i", masks=masks)) for masks in ("a", "b"))
    assert changed(before, after) == {name for name in before.all_stages if name.startswith("evaluate-")}


def test_other_masks_change_the_upper_bound(tiny: Callable[..., Config]) -> None:
    config = tiny({"experiments": {"crf": {"supervision": "masks"}}})
    before, after = (chain_of(config, Outside(masks=masks)) for masks in ("a", "b"))
    assert "segmenter" in changed(before, after)


def test_weights_count_by_content_not_by_place(tiny: Callable[..., Config]) -> None:
    here, there = tiny({"classifier": {"weights": "here.pth"}}), tiny({"classifier": {"weights": "there.pth"}})
    same = Outside(weights=lambda path: "abc")
    assert changed(chain_of(here, same), chain_of(there, same)) == set()
    assert changed(chain_of(here, same), chain_of(here, Outside(weights=lambda path: "def"))) == FROM_CLASSIFIER


def test_raising_a_revision_reruns_the_stage_and_all_below(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    before = chain_of(tiny())
    monkeypatch.setitem(plan_module.REVISIONS, "cams", plan_module.REVISIONS["cams"] + 1)
    assert changed(before, chain_of(tiny())) == FROM_CAMS


def test_a_spec_holds_all_that_a_command_needs(tiny: Callable[..., Config]) -> None:
    plan: Plan = make_plan(tiny(), Outside())
    stage = plan.chains[0].stages["cams"]
    spec = plan.spec(stage)
    assert spec["id"] == stage.id
    assert spec["upstream"] == {"data": plan.chains[0].stages["data"].id, "model": plan.chains[0].stages["classifier"].id}
    assert spec["inputs"]["model"] == str(plan.directory(plan.chains[0].stages["classifier"]))


def test_ids_are_stable_over_processes(tiny: Callable[..., Config]) -> None:
    code = (
        "from wsss_core.config import load_config; from wsss_core.plan import *; "
        "print(make_plan(load_config({'experiments': {'a': {}}}), Outside()).chains[0].stages['segmenter'].id)"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert len(runs.pop().strip()) == plan_module.ID_DIGITS


def test_plan_and_help_load_no_torch() -> None:
    code = "import sys, wsss_core.cli, wsss_core.results, wsss_core.plan_table; print('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
