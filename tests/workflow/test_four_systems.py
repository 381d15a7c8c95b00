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


def test_rows_are_those_of_their_own_studies_up_to_the_pseudo_masks() -> None:
    """Where a study has run, nothing of its rows is done again but the segmenters."""
    own = {"cam": ("isim", "cam"), "isim": ("isim", "deeplabcam"), "muscle": ("muscle_beacon", "beacon")}
    for seed in (0, 1, 2):
        four = rows("four_systems", seed)
        for name, (study, row) in own.items():
            theirs = rows(study, seed)[row].stages
            assert four[name].stages.keys() == theirs.keys()
            assert {each for each, stage in four[name].stages.items() if stage.id != theirs[each].id} == {"segmenter", "predict"}


def test_rsa_cfc_and_apc_differ_from_their_own_studies_in_budget_and_crops_alone() -> None:
    four = rows("four_systems")
    own = {"classifier": {"epochs", "resize", "crop_size"}, "segmenter": {"epochs"}}  # its tiles are larger there
    assert differing(four["rsa-cfc"], rows("rsa_cfc")["rsa-cfc"]) == own
    assert differing(four["apc"], rows("apc")["apc"]) == {"classifier": {"epochs"}}


def test_all_rows_have_one_budget_and_the_convolutional_ones_one_backbone() -> None:
    four = rows("four_systems")
    assert list(four) == ["cam", "isim", "rsa-cfc", "muscle", "apc", "upper-bound"]
    trained = {
        name: {kind: chain.stages[kind].parameters for kind in ("classifier", "segmenter") if kind in chain.stages}
        for name, chain in four.items()
    }
    epochs = {name: {kind: each["epochs"] for kind, each in kinds.items()} for name, kinds in trained.items()}
    both = {"classifier": 6, "segmenter": 18}
    assert epochs == {**dict.fromkeys(four, both), "apc": {"classifier": sum(both.values())}, "upper-bound": {"segmenter": 18}}
    for name, kinds in trained.items():
        backbone = "deit_tiny_patch16_224" if name == "apc" else "mobilenetv2_100"
        assert {each["backbone"] for each in kinds.values()} == {backbone}
        assert {kind: each["batch_size"] for kind, each in kinds.items()}.items() <= {"classifier": 16, "segmenter": 8}.items()
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
