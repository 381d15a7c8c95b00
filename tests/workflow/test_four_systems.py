"""The comparison of the four systems: what its rows share with each other and with the systems' own small studies."""

from __future__ import annotations

from typing import Any

from presets import WORKFLOW, planned

from wsss_core.chain import Chain
from wsss_core.config import load_config, overlay, read_yaml

STUDIES = WORKFLOW / "studies"


def rows(study: str, seed: int = 0) -> dict[str, Chain]:
    return {chain.name: chain for chain in planned(STUDIES / f"{study}.yaml").chains if chain.seed == seed}


def differing(one: Chain, other: Chain) -> dict[str, set[str]]:
    """The keys in which stages of the same name differ, of those that differ."""

    def keys(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
        return {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}

    assert one.stages.keys() == other.stages.keys()
    found = {name: keys(stage.parameters, other.stages[name].parameters) for name, stage in one.stages.items()}
    return {name: each for name, each in found.items() if each}


def test_rows_are_those_of_their_own_studies() -> None:
    """Where a study has run, nothing of its rows is done again."""
    own = {"cam": ("isim", "cam"), "isim": ("isim", "deeplabcam"), "apc": ("apc", "apc")}
    own["muscle"] = ("muscle_beacon", "muscle,bifpn_layers=3,loss=beacon")
    for seed in (0, 1, 2):
        four = rows("four_systems", seed)
        for name, (study, row) in own.items():
            stages = {each: stage.id for each, stage in four[name].stages.items()}
            assert stages == {each: stage.id for each, stage in rows(study, seed)[row].stages.items()}


def test_rsa_cfc_differs_from_its_own_study_in_the_budget_alone() -> None:
    assert differing(rows("four_systems")["rsa-cfc"], rows("rsa_cfc")["rsa-cfc"]) == {"classifier": {"epochs"}, "segmenter": {"epochs"}}


def test_all_rows_have_one_budget_and_the_convolutional_ones_one_backbone() -> None:
    four = rows("four_systems")
    assert list(four) == ["cam", "isim", "rsa-cfc", "muscle", "apc", "upper-bound"]
    budgets = {"classifier": {(6, 16)}, "segmenter": {(6, 8)}}
    for kind, budget in budgets.items():
        found = {name: chain.stages[kind].parameters for name, chain in four.items() if kind in chain.stages}
        assert {(each["epochs"], each["batch_size"]) for each in found.values()} == budget
        assert {each["backbone"] for name, each in found.items() if name != "apc"} == {"mobilenetv2_100"}
    assert four["apc"].stages["classifier"].parameters["backbone"] == "deit_tiny_patch16_224"
    assert {name: chain.experiment.seeds for name, chain in four.items()} == dict.fromkeys(four, (0, 1, 2))


def test_cam_isim_and_rsa_cfc_go_the_same_way_and_the_upper_bound_has_their_segmenter() -> None:
    four = rows("four_systems")
    for name in ("isim", "rsa-cfc"):
        for stage in ("affinity-labels", "affinity", "walk", "refine", "pseudo", "segmenter", "predict"):
            assert four[name].stages[stage].parameters == four["cam"].stages[stage].parameters
    bound, cam = (four[name].stages["segmenter"].parameters for name in ("upper-bound", "cam"))
    assert {key for key in cam if bound[key] != cam[key]} == {"supervision"}


def test_weights_named_for_all_do_not_reach_the_transformer() -> None:
    mine = {"classifier": {"weights": "mobilenet"}, "experiments": {"apc": {"segmenter": {}}}}
    experiments = load_config(overlay(read_yaml(STUDIES / "four_systems.yaml"), mine)).experiments
    weights = {name: each.classifier.weights for name, each in experiments.items() if each.supervision == "image_labels"}
    assert weights == {**dict.fromkeys(("cam", "isim", "rsa-cfc", "muscle"), "mobilenet"), "apc": "pretrained"}
    assert experiments["apc"].segmenter == experiments["cam"].segmenter  # as the study's head says
