"""The plan: what shares work, what a change reruns, what never enters an id."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from wsss_core import chain as chain_module
from wsss_core.config import Config, overlay
from wsss_core.plan import Chain, Outside, Plan, make_plan


def chain_of(config: Config, outside: Outside | None = None) -> Chain:
    return make_plan(config, outside or Outside()).chains[0]


def changed(before: Chain, after: Chain) -> set[str]:
    names = before.all_stages.keys() | after.all_stages.keys()
    ids = [{name: stage.id for name, stage in chain.all_stages.items()} for chain in (before, after)]
    return {name for name in names if ids[0].get(name) != ids[1].get(name)}


FROM_CRF = {"refine", "pseudo", "segmenter", "predict", "evaluate-refine", "evaluate-pseudo", "evaluate-segmenter"}
FROM_CAMS = FROM_CRF | {"cams", "cams-threshold", "evaluate-cams"}
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


FROM_WALK = {"walk", "walk-threshold", "evaluate-walk"} | FROM_CRF
FROM_LABELS = FROM_WALK | {"affinity-labels", "affinity"}


@pytest.mark.parametrize(
    ("change", "reruns"),
    [
        ({"refine": {"boundary": {"epochs": 7}}}, set()),
        ({"refine": {"walk": {"beta": 4}}}, FROM_WALK),
        ({"refine": {"affinity": {"lr": 0.5}}}, FROM_WALK | {"affinity"}),
        ({"refine": {"affinity": {"backbone": "resnet18", "weights": "pretrained"}}}, set()),  # it starts from the classifier
        ({"refine": {"labels": {"margin": 0.4}}}, FROM_LABELS),
        ({"refine": {"labels": {"foreground": 0.9, "high": 30}}}, set()),  # of methods that are not chosen
        ({"refine": {"walk": {"radius": 7, "background_power": 2}}}, set()),  # neither is used by this walk
        ({"refine": {"crf": "soft"}}, FROM_CRF),
        ({"classifier": {"lr": 0.123}}, FROM_LABELS | {"classifier", "cams", "cams-threshold", "evaluate-cams", "evaluate-classifier"}),
    ],
)
def test_a_change_of_a_walk_reruns_exactly_what_it_should(tiny: Callable[..., Config], change: dict[str, Any], reruns: set[str]) -> None:
    walk = {"refine": {"method": "affinity"}}
    assert changed(chain_of(tiny(walk)), chain_of(tiny(overlay(walk, change)))) == reruns


def test_figures_say_that_a_walk_made_them(tiny: Callable[..., Config]) -> None:
    chain = chain_of(tiny({"refine": {"method": "boundary"}}))
    walked = {name: stage.parameters["protocol"].get("walk") for name, stage in chain.evaluations.items()}
    assert walked == {"classifier": None, "cams": "none", "walk": "boundary", "refine": "boundary", "pseudo": "boundary", "segmenter": None}


def test_values_that_a_stage_does_not_use_change_no_id(tiny: Callable[..., Config]) -> None:
    assert changed(chain_of(tiny()), chain_of(tiny({"refine": {"background_power": 9}}))) == set()
    power = {"refine": {"method": "affinity", "walk": {"background": "power", "beta": 8}}}
    assert changed(chain_of(tiny(power)), chain_of(tiny(overlay(power, {"refine": {"background": 0.4, "walk": {"beta": None}}})))) == set()
    fixed = {"refine": {"method": "affinity", "labels": {"method": "thresholds", "foreground": 0.5, "background": 0.1}}}
    assert changed(chain_of(tiny(fixed)), chain_of(tiny(overlay(fixed, {"refine": {"labels": {"margin": 0.4, "crf": "labels"}}})))) == set()


@pytest.mark.parametrize(
    "change",
    [
        {"attention": "none"},
        {"lambda_contrast": 1},
        {"alpha": 1},
        {"foreground": "relu"},
        {"pairs": "all"},
        {"present_only": False},
        {"beta_reconstruction": 1},
        {"ramp": 0},
        {"reconstruction_level": "logits"},
        {"tile_statistics": True},
    ],
)
def test_a_value_of_a_system_reruns_from_the_classifier(tiny: Callable[..., Config], change: dict[str, Any]) -> None:
    system = {"classifier": {"system": "rsa_cfc"}}
    assert changed(chain_of(tiny(system)), chain_of(tiny(overlay(system, {"classifier": change})))) == FROM_CLASSIFIER


def test_systems_share_nothing_but_the_data(tiny: Callable[..., Config]) -> None:
    chains = [chain_of(tiny({"classifier": {"system": system}})) for system in ("cam", "puzzle", "rsa_cfc")]
    assert all(changed(one, other) == FROM_CLASSIFIER for one, other in (chains[:2], chains[1:], chains[::2]))
    assert changed(chain_of(tiny()), chains[0]) == set()  # named or not


@pytest.mark.parametrize("system", ["cam", "puzzle", "rsa_cfc"])
def test_a_system_has_a_revision_of_its_own(tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    def chains() -> list[Chain]:
        return [chain_of(tiny({"classifier": {"system": each}})) for each in (system, "puzzle" if system == "cam" else "cam")]

    before = chains()
    monkeypatch.setitem(chain_module.REVISIONS, f"classifier.{system}", 99)
    assert [changed(*pair) for pair in zip(before, chains(), strict=True)] == [FROM_CLASSIFIER, set()]


@pytest.mark.parametrize("system", ["cam", "puzzle", "rsa_cfc"])
def test_a_training_without_snapshots_is_what_it_was_before_there_were_any(tiny: Callable[..., Config], system: str) -> None:
    chain = chain_of(tiny({"classifier": {"system": system}}))
    values = chain.experiment.classifier.model_dump(mode="json")
    assert values.pop("snapshots") == []
    unused = {"milestones", "gamma", "momentum", "temperature"}  # of schedule, optimiser and kernel that are not the default
    values = {key: value for key, value in values.items() if key not in unused}
    content = {
        "stage": "classifier",
        "revision": chain_module.REVISIONS[f"classifier.{system}"],
        "parameters": values,
        "seed": 0,
        "upstream": {"data": chain.stages["data"].id},
    }
    assert chain.stages["classifier"].id == chain_module.digest(content)
    assert changed(chain, chain_of(tiny({"classifier": {"system": system, "snapshots": []}}))) == set()
    assert not [name for name in chain.all_stages if "epoch" in name]


RSA_CFC = {"system": "rsa_cfc"}
OFF = {"attention": "none", "lambda_contrast": 0, "beta_reconstruction": 0}


@pytest.mark.parametrize(
    ("base", "change", "same"),
    [
        (RSA_CFC, {"temperature": 0.5}, True),
        ({**RSA_CFC, "attention": "softmax_cosine"}, {"temperature": 0.5}, False),
        (RSA_CFC, {"alpha": 1}, False),
        (RSA_CFC, {"present_only": False}, False),
        (RSA_CFC, {"ramp": 0}, False),
        ({**RSA_CFC, **OFF}, {"alpha": 1, "present_only": False, "ramp": 0, "temperature": 0.5}, True),
        ({**RSA_CFC, **OFF}, {"foreground": "relu", "pairs": "all", "reconstruction_level": "logits"}, True),
        ({**RSA_CFC, **OFF}, {"tile_statistics": True}, False),
        (RSA_CFC, {"foreground": "sigmoid"}, False),
        ({"system": "puzzle"}, {"ramp": 0}, False),
        ({"system": "puzzle"}, {"reconstruction_level": "logits"}, False),
        ({"system": "puzzle", "beta_reconstruction": 0}, {"ramp": 0, "reconstruction_level": "logits"}, True),
        ({}, {"milestones": [0.2], "gamma": 0.5}, True),
        ({}, {"power": 1}, False),
        ({"optimizer": "sgd"}, {"momentum": 0.5}, False),
        ({"schedule": "step"}, {"power": 1}, True),
        ({"schedule": "step"}, {"milestones": [0.2]}, False),
        ({"schedule": "step"}, {"gamma": 0.5}, False),
        ({"schedule": "constant"}, {"milestones": [0.2], "gamma": 0.5, "power": 1}, True),
        ({"optimizer": "adam"}, {"momentum": 0.5}, True),
        ({"optimizer": "adamw"}, {"momentum": 0.5}, True),
    ],
)
def test_what_a_classifier_does_not_use_changes_no_id(
    tiny: Callable[..., Config], base: dict[str, Any], change: dict[str, Any], same: bool
) -> None:
    one, other = (chain_of(tiny({"classifier": values})) for values in (base, {**base, **change}))
    assert (changed(one, other) == set()) is same


WATCHED = {"classifier": {"epochs": 5, "snapshots": [1, 4]}}


def test_snapshots_change_the_training_and_are_judged_apart(tiny: Callable[..., Config]) -> None:
    plain, chain = chain_of(tiny({"classifier": {"epochs": 5}})), chain_of(tiny(WATCHED))
    added = {f"{role}cams-epoch{epoch}{suffix}" for epoch in (1, 4) for role, suffix in (("", ""), ("", "-threshold"), ("evaluate-", ""))}
    assert changed(plain, chain) == FROM_CLASSIFIER | added
    assert set(chain.all_stages) - set(plain.all_stages) == added
    other = chain_of(tiny(overlay(WATCHED, {"classifier": {"snapshots": [4]}})))
    assert changed(chain, other) == FROM_CLASSIFIER | added
    assert chain.stages["classifier"].parameters["snapshots"] == [1, 4]


def test_the_cams_of_a_snapshot_are_those_of_the_last_model_but_for_the_epoch(tiny: Callable[..., Config]) -> None:
    chain = chain_of(tiny(overlay(WATCHED, {"cams": {"scales": [1.0], "flip": False, "resize": 48, "classes": "predicted"}})))
    last = chain.stages["cams"]
    assert "snapshot" not in last.parameters
    for epoch in (1, 4):
        cams, threshold = chain.stages[f"cams-epoch{epoch}"], chain.stages[f"cams-epoch{epoch}-threshold"]
        assert cams.parameters == {**last.parameters, "snapshot": epoch}
        assert (cams.kind, cams.revision, cams.upstream) == (last.kind, last.revision, last.upstream)
        assert cams.upstream["model"] is chain.stages["classifier"]
        judged, usual = chain.evaluations[f"cams-epoch{epoch}"], chain.evaluations["cams"]
        assert threshold.kind == "threshold" and threshold.upstream["scores"] is cams
        assert judged.upstream["scores"] is cams and judged.upstream["threshold"] is threshold
        protocol = {**usual.parameters["protocol"], "epoch": epoch}
        assert judged.parameters == {**usual.parameters, "protocol": protocol}
        assert judged.parameters["subject"] == "cams"
    assert len({stage.id for name, stage in chain.stages.items() if name.startswith("cams")}) == 6


def test_snapshots_with_a_fixed_threshold_have_no_threshold_stage(tiny: Callable[..., Config]) -> None:
    chain = chain_of(tiny(overlay(WATCHED, {"pseudo": {"threshold": 0.3}})))
    assert not [name for name in chain.stages if "threshold" in name]
    assert all(chain.evaluations[f"cams-epoch{epoch}"].parameters["threshold"] == 0.3 for epoch in (1, 4))
    assert all("threshold" not in chain.evaluations[f"cams-epoch{epoch}"].upstream for epoch in (1, 4))


@pytest.mark.parametrize("method", ["none", "crf", "affinity", "boundary"])
def test_nothing_but_its_evaluation_builds_on_a_snapshot(tiny: Callable[..., Config], method: str) -> None:
    chain = chain_of(tiny(overlay(WATCHED, {"refine": {"method": method}})))
    snapshots = [chain.stages[f"cams-epoch{epoch}"] for epoch in (1, 4)]
    below = {name for name, stage in chain.all_stages.items() if any(each in snapshots for each in stage.upstream.values())}
    assert below == {f"cams-epoch{epoch}-threshold" for epoch in (1, 4)} | {f"evaluate-cams-epoch{epoch}" for epoch in (1, 4)}
    assert chain.evaluations["cams"].upstream["threshold"] is chain.stages["cams-threshold"]
    assert chain.stages["cams-threshold"].upstream["scores"] is chain.stages["cams"]


def test_the_upper_bound_takes_no_snapshots(tiny: Callable[..., Config]) -> None:
    config = tiny(overlay(WATCHED, {"experiments": {"crf": {"supervision": "masks"}}}))
    assert list(chain_of(config).all_stages) == ["data", "segmenter", "predict", "evaluate-segmenter"]


def test_a_walk_has_all_its_stages_and_ends_where_it_is_told(tiny: Callable[..., Config]) -> None:
    chain = chain_of(tiny({"refine": {"method": "boundary"}}))
    walked = ["cams-threshold", "affinity-labels", "boundary", "walk", "walk-threshold", "refine", "pseudo"]
    assert list(chain.stages)[:10] == ["data", "classifier", "cams", *walked]
    assert chain.stages["boundary"].upstream["classifier"] is chain.stages["classifier"]
    bare = chain_of(tiny({"refine": {"method": "boundary", "crf": "none"}}))
    assert "refine" not in bare.stages
    assert bare.stages["pseudo"].upstream["threshold"] is bare.stages["walk-threshold"]
    assert bare.stages["walk"].id == chain.stages["walk"].id
    power = chain_of(tiny({"refine": {"method": "affinity", "crf": "none", "walk": {"background": "power"}}, "pseudo": {"threshold": 0.2}}))
    assert power.stages["pseudo"].parameters["threshold"] is None  # the background walks along: the best channel wins
    assert "walk-threshold" not in power.stages


def test_a_pair_network_may_start_from_other_weights(tiny: Callable[..., Config]) -> None:
    own = {"initial": "weights", "backbone": "resnet18", "weights": "none"}
    chain = chain_of(tiny({"refine": {"method": "affinity", "affinity": own}}))
    assert chain.stages["affinity"].parameters["backbone"] == "resnet18"
    assert set(chain.stages["affinity"].upstream) == {"data", "labels"}


def test_a_fixed_threshold_needs_no_threshold_stage(tiny: Callable[..., Config]) -> None:
    chain = chain_of(tiny({"pseudo": {"threshold": 0.3}, "refine": {"method": "none"}}))
    assert not [name for name in chain.stages if "threshold" in name]
    assert chain.evaluations["cams"].parameters["threshold"] == 0.3


def test_experiments_share_a_prefix(tiny: Callable[..., Config]) -> None:
    plan = make_plan(tiny({"experiments": {"crf": {}, "plain": {"refine": {"method": "none"}}}}), Outside())
    first, second = plan.chains
    shared = {name for name in second.stages if first.stages[name].id == second.stages[name].id}
    assert shared == {"data", "classifier", "cams", "cams-threshold"}
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
    monkeypatch.setitem(chain_module.REVISIONS, "cams", chain_module.REVISIONS["cams"] + 1)
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
    assert len(runs.pop().strip()) == chain_module.ID_DIGITS


def test_plan_and_help_load_no_torch() -> None:
    code = "import sys, wsss_core.cli, wsss_core.results, wsss_core.plan_table; print('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
