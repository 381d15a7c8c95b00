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


def test_trainings_are_those_of_the_systems_own_studies() -> None:
    """Where one of them has run, the other does not train its classifiers again."""
    own = {"cam": ("isim", "cam"), "isim": ("isim", "deeplabcam"), "rsa-cfc": ("rsa_cfc", "rsa-cfc"), "muscle": ("muscle", "mcl")}
    for seed in (0, 1, 2):
        four = rows("four_systems", seed)
        for name, (study, row) in {**own, "apc": ("apc", "apc")}.items():
            assert four[name].stages["classifier"].id == rows(study, seed)[row].stages["classifier"].id
        ends = {kind: four["apc"].stages[kind].id for kind in ("pseudo", "end_to_end", "end_to_end-patches", "end_to_end-labels")}
        apc = rows("apc", seed)["apc"].stages
        assert {kind: apc[kind].id for kind in ends} == ends
        assert four["muscle"].stages["pseudo"].id == rows("muscle_beacon", seed)["beacon"].stages["pseudo"].id
        assert four["cam"].stages["segmenter"].id == rows("baseline", seed)["crf"].stages["segmenter"].id
        assert four["upper-bound"].stages["predict"].id == rows("recipes", seed)["segmenter"].stages["predict"].id
        assert four["cam"].stages["pseudo"].id == rows("refinement", seed)["crf"].stages["pseudo"].id


def test_all_rows_have_one_budget_and_one_segmenter_and_the_convolutional_ones_one_backbone() -> None:
    four = rows("four_systems")
    assert list(four) == ["cam", "isim", "rsa-cfc", "muscle", "apc", "upper-bound"]
    for name, chain in four.items():
        trained = {kind: chain.stages[kind].parameters for kind in ("classifier", "segmenter") if kind in chain.stages}
        assert {(each["epochs"], each["batch_size"], each["optimizer"], each["lr"]) for each in trained.values()} == {
            (8, 16, "adamw", "auto")
        }
        assert trained["segmenter"]["backbone"] == "mobilenetv2_100"
        if "classifier" in trained:
            assert trained["classifier"]["backbone"] == ("deit_tiny_patch16_224" if name == "apc" else "mobilenetv2_100")
        cam = four["cam"].stages["segmenter"].parameters
        assert {key for key in cam if trained["segmenter"][key] != cam[key]} == ({"supervision"} if name == "upper-bound" else set())
        assert chain.stages["predict"].parameters == four["cam"].stages["predict"].parameters  # and one test
        assert chain.experiment.seeds == (0, 1, 2, 3, 4)


def test_all_but_muscle_and_apc_differ_in_the_classifier_alone() -> None:
    four = rows("four_systems")
    for name in ("isim", "rsa-cfc"):
        assert differing(four["cam"], four[name]).keys() == {"classifier"}
    assert four["rsa-cfc"].stages["classifier"].parameters["crop_size"] == 2 * 128  # tiles of 128 pixels


def test_weights_named_for_all_do_not_reach_the_transformer() -> None:
    mine = {"classifier": {"weights": "mobilenet"}}
    experiments = load_config(overlay(read_yaml(STUDIES / "four_systems.yaml"), mine)).experiments
    weights = {name: each.classifier.weights for name, each in experiments.items() if each.supervision == "image_labels"}
    assert weights == {**dict.fromkeys(("cam", "isim", "rsa-cfc", "muscle"), "mobilenet"), "apc": "pretrained"}
