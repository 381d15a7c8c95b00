"""What the presets and studies of each system hold: the papers' values, rows that differ as they should, stages that are shared."""

from __future__ import annotations

import re

import pytest
import yaml
from presets import WORKFLOW, planned

from wsss_core.config import ApcClassifier, IsimClassifier, MclClassifier, OwnLabels, load_config, overlay, read_yaml
from wsss_core.engine.optimiser import lr_factor

NETWORKS = {
    "resnet50.tv_in1k",
    "resnet101.tv_in1k",
    "resnet152.tv_in1k",
    "resnest50d",
    "resnest101e",
    "resnest200e",
    "resnest269e",
}


def test_the_rows_of_the_ablation_differ_as_they_should() -> None:
    plan = planned(WORKFLOW / "presets/voc12-rsa-cfc.yaml", WORKFLOW / "studies/rsa_cfc_table7.yaml")
    classifiers = {chain.name: chain.stages["classifier"].parameters for chain in plan.chains}
    contrast = {"alpha", "foreground", "pairs", "present_only"}
    own = {"attention", "lambda_contrast"} | contrast
    assert {name: values["system"] for name, values in classifiers.items()} == {
        "rsa-cfc": "rsa_cfc",
        "cam": "cam",
        "puzzle": "puzzle",
        "puzzle-cfc": "rsa_cfc",
        "puzzle-rsa": "rsa_cfc",
    }
    full = classifiers["rsa-cfc"]
    assert (full["lambda_contrast"], full["beta_reconstruction"], full["alpha"]) == (0.5, 2.0, 0.25)
    assert classifiers["puzzle-cfc"] == {**full, "attention": "none"}
    assert classifiers["puzzle-rsa"] == {**{key: value for key, value in full.items() if key not in contrast}, "lambda_contrast": 0.0}
    assert classifiers["puzzle"] == {**{key: value for key, value in full.items() if key not in own}, "system": "puzzle"}


LITERAL = {"reconstruction_level": "logits", "tile_statistics": True}
LITERAL_CFC = {"foreground": "relu", "pairs": "all", "present_only": False}


@pytest.mark.parametrize(("preset", "study"), [("voc12", 1), ("voc12", 2), ("voc12", 5), ("voc12", 7), ("coco14", 6), ("shapes", 7)])
def test_the_tables_of_rsa_cfc_have_the_papers_literal_losses(preset: str, study: int) -> None:
    plan = planned(WORKFLOW / f"presets/{preset}-rsa-cfc.yaml", WORKFLOW / f"studies/rsa_cfc_table{study}.yaml")
    for chain in plan.chains:
        found = chain.stages["classifier"].parameters
        expected = {} if found["system"] == "cam" else dict(LITERAL)
        if found["system"] == "rsa_cfc":
            expected["attention"] = "none" if chain.name == "puzzle-cfc" else "softmax_dot"
            expected |= {} if chain.name == "puzzle-rsa" else LITERAL_CFC
        assert {name: found[name] for name in expected} == expected, chain.name


def test_figure_7_has_its_network_and_the_papers_losses() -> None:
    paths = WORKFLOW / "presets/voc12-rsa-cfc.yaml", WORKFLOW / "studies/rsa_cfc_figure7.yaml"
    classifiers = {chain.name: chain.stages["classifier"].parameters for chain in planned(*paths).chains}
    seventh = {
        chain.name: chain.stages["classifier"].parameters for chain in planned(paths[0], WORKFLOW / "studies/rsa_cfc_table7.yaml").chains
    }
    assert set(classifiers) == {"puzzle-cfc", "puzzle-rsa", "rsa-cfc"}
    for name, values in classifiers.items():
        assert {key for key in values if values[key] != seventh[name].get(key)} == {"backbone", "snapshots"}
        assert values["backbone"] == "resnest101e"
    made = planned(paths[1], WORKFLOW / "presets/shapes-rsa-cfc.yaml")
    assert {chain.stages["classifier"].parameters["backbone"] for chain in made.chains} == {"test_resnet"}


def test_the_tiles_of_the_small_study_are_large_enough_and_the_trials_have_its_classifier() -> None:
    study, trials = (planned(WORKFLOW / f"studies/rsa_cfc{name}.yaml") for name in ("", "_trials"))
    classifiers = {chain.name: chain.stages["classifier"] for chain in study.chains if chain.seed == 0}
    assert all(stage.parameters["crop_size"] >= 2 * 128 for stage in classifiers.values())
    tried = {chain.name: chain.stages["classifier"] for chain in trials.chains}
    assert {name for name, stage in tried.items() if stage.id in {each.id for each in classifiers.values()}} == {"puzzle", "rsa-cfc"}
    assert len({stage.id for stage in tried.values()}) == len(tried)


def test_all_three_networks_of_a_chain_are_those_that_the_study_names() -> None:
    plan = planned(WORKFLOW / "presets/voc12-rsa-cfc.yaml", WORKFLOW / "studies/rsa_cfc_table5.yaml")
    chain = next(chain for chain in plan.chains if chain.name == "rsa-cfc+rw+crf")
    assert {chain.stages[kind].parameters["backbone"] for kind in ("classifier", "affinity", "segmenter")} == {"resnest101e"}


def test_made_images_laid_last_have_the_last_word_on_the_networks() -> None:
    plan = planned(WORKFLOW / "studies/rsa_cfc_table5.yaml", WORKFLOW / "presets/shapes-rsa-cfc.yaml")
    assert {chain.name for chain in plan.chains} == {"rsa-cfc", "rsa-cfc+rw+crf"}
    networks = [stage for stage in plan.stages.values() if "backbone" in stage.parameters]
    assert {stage.parameters["backbone"] for stage in networks} == {"test_resnet"}
    assert {stage.kind for stage in networks} == {"classifier", "affinity", "segmenter"}


def test_the_preset_of_isim_has_the_papers_rates_and_rounds() -> None:
    chain = planned(WORKFLOW / "presets/voc12-isim.yaml").chains[0]
    classifier = chain.experiment.classifier
    assert isinstance(classifier, IsimClassifier)
    rates = classifier.lr, classifier.lr * classifier.decoder_lr_factor, classifier.lr * classifier.head_lr_factor
    assert rates == pytest.approx((0.1, 0.01, 1))
    assert classifier.lambda_segmentation == 1
    assert classifier.labels == OwnLabels(threshold=0.3, crf="labels", recalibrate=False)
    assert classifier.label_epochs == (5, 15, 25, 35, 45)
    assert {f"pseudo-epoch{epoch}" for epoch in classifier.label_epochs} <= set(chain.evaluations)


def test_the_studies_of_isim_share_their_classifiers_and_pseudo_masks() -> None:
    preset = WORKFLOW / "presets/voc12-isim.yaml"
    plans = {number: planned(preset, WORKFLOW / f"studies/isim_table{number}.yaml") for number in (1, 2, 3, 5, 6, 7, 8, 9, 10, 11)}

    def ids(number: int, kind: str) -> set[str]:
        return {chain.stages[kind].id for chain in plans[number].chains if kind in chain.stages}

    assert len(ids(2, "classifier")) == 14 and ids(2, "classifier") == ids(7, "classifier")
    assert ids(1, "classifier") < ids(2, "classifier") and ids(5, "classifier") == ids(3, "classifier")
    assert len(ids(3, "classifier") & ids(2, "classifier")) == 1  # CAM with ResNet-50
    assert len(ids(6, "classifier") & ids(2, "classifier")) == 2  # both with crops of 320
    assert ids(8, "pseudo") == ids(9, "pseudo") < ids(7, "pseudo")
    assert ids(10, "pseudo") < ids(9, "pseudo") and ids(11, "pseudo") < ids(9, "pseudo")
    assert ids(11, "segmenter") <= ids(8, "segmenter") | ids(9, "segmenter") | ids(10, "segmenter")
    assert len(ids(8, "segmenter") & ids(9, "segmenter")) == 1  # ResNet-101 all through
    own = planned(preset).chains[0].stages["classifier"].parameters
    for stage in (stage for plan in plans.values() for stage in plan.stages.values() if stage.parameters.get("system") == "isim"):
        varied = {"backbone", "decoder", "decoder_channels", "crop_size"}
        assert {key: value for key, value in stage.parameters.items() if key not in varied} == {
            key: value for key, value in own.items() if key not in varied
        }


def test_the_figures_of_isim_share_the_presets_classifier() -> None:
    preset = WORKFLOW / "presets/voc12-isim.yaml"
    own = planned(preset).chains[0].stages["classifier"].id
    for number, rounds in ((4, 6), (5, 1)):
        classifiers = {chain.stages["classifier"].id for chain in planned(preset, WORKFLOW / f"studies/isim_figure{number}.yaml").chains}
        assert own in classifiers and len(classifiers) == rounds


@pytest.mark.parametrize(("number", "segmenters"), [(8, NETWORKS), (9, {"resnet101.tv_in1k"}), (10, {"resnet101.tv_in1k"})])
def test_the_chains_of_isim_have_the_networks_of_their_table(number: int, segmenters: set[str]) -> None:
    plan = planned(WORKFLOW / "presets/voc12-isim.yaml", WORKFLOW / f"studies/isim_table{number}.yaml")
    used = [{kind: chain.stages[kind].parameters["backbone"] for kind in ("classifier", "affinity", "segmenter")} for chain in plan.chains]
    assert all(each["classifier"] == each["affinity"] for each in used)
    assert {each["segmenter"] for each in used} == segmenters
    assert number != 8 or all(each["classifier"] == each["segmenter"] for each in used)
    assert {each["classifier"] for each in used} == (NETWORKS if number < 10 else {"resnet50.tv_in1k", "resnet101.tv_in1k", "resnest200e"})
    assert {stage.parameters["decoder"] for stage in plan.stages.values() if stage.kind == "segmenter"} == {
        "deeplabv2" if number == 10 else "deeplabv3"
    }


@pytest.mark.parametrize("number", [3, 5])
def test_made_images_laid_last_keep_the_rounds_of_isim(number: int) -> None:
    plan = planned(WORKFLOW / f"studies/isim_table{number}.yaml", WORKFLOW / "presets/shapes-isim.yaml")
    classifiers = {chain.name: chain.experiment.classifier for chain in plan.chains}
    assert {classifier.backbone for classifier in classifiers.values()} == {"test_resnet"}
    own = [classifier for classifier in classifiers.values() if isinstance(classifier, IsimClassifier)]
    assert len(own) == len(classifiers) - 1 and all(each.label_epochs == (4, 8, 12) for each in own)
    for chain in plan.chains:
        assert chain.stages["pseudo"].upstream["scores"] is chain.stages["cams"] and "segmenter" not in chain.stages
        assert chain.stages["pseudo"].parameters == {"threshold": 0.3, "crf": "labels" if number == 5 else "none"}


def test_the_rows_of_isim_have_one_budget_and_the_small_studies_share_a_classifier() -> None:
    rows = {chain.name: chain for chain in planned(WORKFLOW / "studies/isim.yaml").chains if chain.seed == 0}
    classifiers = {name: chain.stages["classifier"].parameters for name, chain in rows.items()}
    budget = {"backbone", "epochs", "batch_size", "resize", "crop_size", "head_lr_factor", "lr"}
    assert len({str({key: values[key] for key in sorted(budget)}) for values in classifiers.values()}) == 1
    defaults = IsimClassifier(system="isim")
    headline = classifiers["deeplabcam"]
    assert (headline["decoder_lr_factor"], headline["lambda_segmentation"]) == (None, defaults.lambda_segmentation)
    assert headline["labels"] == {**defaults.labels.model_dump(mode="json"), "scales": [1.0]}
    fixed = {**headline["labels"], "threshold": 0.3, "crf": "labels"}
    changes = {
        "unetcam-learnable": {"decoder": "unet_transposed", "decoder_channels": 48},
        "unetcam-nonlearnable": {"decoder": "unet_bilinear", "decoder_channels": 48},
        "decoder-1": {"decoder_lr_factor": 1},
        "decoder-0.1": {"decoder_lr_factor": 0.1},
        "lambda-1": {"lambda_segmentation": 1},
        "fixed-labels": {"labels": fixed},
        "paper": {
            "optimizer": "sgd",
            "momentum": 0.9,
            "warmup": 0,
            "decoder_lr_factor": 0.1,
            "lambda_segmentation": 1,
            "labels": {**fixed, "recalibrate": False},
        },
    }
    assert list(rows) == ["cam", "deeplabcam", *changes]
    for name, values in changes.items():
        assert classifiers[name] == {**headline, **values}
    often = {chain.name: chain for chain in planned(WORKFLOW / "studies/isim_frequency.yaml").chains if chain.seed == 0}
    assert often["every-3"].stages["cams"].id == rows["deeplabcam"].stages["cams"].id
    assert {name: chain.experiment.classifier.label_epochs for name, chain in often.items()} == {
        "every-1": (2, 3, 4, 5, 6, 7),
        "every-3": (2, 5),
        "once": (2,),
        "converged": (),
    }


def test_the_thresholds_of_isims_labels_are_all_that_differs() -> None:
    preset = WORKFLOW / "presets/voc12-isim.yaml"
    plan = planned(preset, WORKFLOW / "studies/isim_threshold.yaml")
    classifiers = [chain.stages["classifier"] for chain in plan.chains]
    own = planned(preset).chains[0].stages["classifier"]
    assert [stage.parameters["labels"]["threshold"] for stage in classifiers] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert classifiers[2].id == own.id
    for stage in classifiers:
        labels = {**stage.parameters["labels"], "threshold": 0.3}
        assert {**stage.parameters, "labels": labels} == own.parameters


def test_the_preset_of_muscle_has_the_papers_values() -> None:
    chain = planned(WORKFLOW / "presets/voc12-muscle.yaml").chains[0]
    classifier, segmenter, walk = chain.experiment.classifier, chain.experiment.segmenter, chain.stages["walk"].parameters
    assert isinstance(classifier, MclClassifier) and segmenter is not None
    assert (classifier.crop_size, classifier.crop_pair, classifier.attention, classifier.temperature) == (448, 224, "sam", 1)
    assert (classifier.lambda_image, classifier.lambda_pixel, classifier.lambda_region) == (1, 1, 1)
    assert (classifier.image_from, classifier.pixel_from, classifier.region_from, classifier.epochs) == (4, 8, 12, 16)
    assert (classifier.pair_loss, classifier.pixel_vectors) == ("scores", "relu")
    assert (classifier.batch_size, segmenter.batch_size, segmenter.bifpn_layers) == (6, 6, 3)
    assert (segmenter.lambda_beacon, segmenter.beacon_steps, segmenter.beacon_samples, segmenter.beacon_threshold) == (0.05, 7, 128, "mean")
    assert (segmenter.beacon_sign, segmenter.beacon_from) == ("point", 0)
    assert (walk["beta"], walk["steps"], chain.stages["boundary"].parameters["backbone"]) == (8, 2**8, "resnet50.tv_in1k")
    assert chain.stages["segmenter"].upstream["classifier"] is chain.stages["classifier"]  # Fig. 1: one encoder
    assert chain.stages["segmenter"].upstream["scores"] is chain.stages["walk"]  # BEACON's soft masks


def test_the_rows_of_muscles_ablation_differ_as_they_should() -> None:
    chains = {
        chain.name: chain for chain in planned(WORKFLOW / "presets/voc12-muscle.yaml", WORKFLOW / "studies/muscle_table1.yaml").chains
    }
    rows = ["baseline", "hcl", "hcl+imc", "hcl+imc+pixc", "muscle"]
    terms = [chains[name].stages["classifier"].parameters for name in rows]
    assert len(chains) == 10 and [values["classification_loss"] for values in terms] == ["bce", *["hybrid"] * 4]
    assert [[values[f"lambda_{name}"] for values in terms] for name in ("image", "pixel", "region")] == [
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1],
    ]
    for name in rows:
        multi, single = chains[name], chains[f"{name}-single"]
        assert multi.stages["classifier"].id == single.stages["classifier"].id
        assert single.stages["cams"].parameters == {**multi.stages["cams"].parameters, "scales": [1.0], "flip": False}


def test_the_studies_of_muscle_share_their_stages() -> None:
    preset = WORKFLOW / "presets/voc12-muscle.yaml"
    plans = {
        number: planned(preset, WORKFLOW / f"studies/muscle_{number}.yaml")
        for number in (*(f"table{n}" for n in range(1, 7)), "figure8", "figureA10")
    }

    def ids(study: str, kind: str) -> set[str]:
        return {chain.stages[kind].id for chain in plans[study].chains if kind in chain.stages}

    own = {kind: stage.id for kind, stage in planned(preset).chains[0].stages.items()}
    for study in ("table3", "table4", "table5", "table6", "figure8"):
        assert own["classifier"] in ids(study, "classifier") and own["segmenter"] in ids(study, "segmenter")
    assert own["classifier"] in ids("table1", "classifier") & ids("table2", "classifier")
    assert {own["classifier"]} == ids("figure8", "classifier") < ids("table4", "classifier") < ids("table3", "classifier")
    assert ids("table5", "classifier") == ids("table4", "classifier") and len(ids("table3", "classifier")) == 3  # b3, b5, b7
    assert ids("table5", "pseudo") < ids("table3", "pseudo") and len(ids("table4", "pseudo") & ids("table2", "pseudo")) == 2  # b7's
    assert len(ids("table3", "segmenter") & ids("table4", "segmenter")) == 4  # b5 and b7, with and without BEACON
    assert ids("table6", "segmenter") < ids("table5", "segmenter") < ids("table3", "segmenter")
    assert ids("figure8", "segmenter") < ids("table3", "segmenter")


def test_the_segmenters_of_muscle_are_those_of_their_tables() -> None:
    preset = WORKFLOW / "presets/voc12-muscle.yaml"

    def segmenters(number: int) -> dict[str, tuple[object, ...]]:
        plan = planned(preset, WORKFLOW / f"studies/muscle_table{number}.yaml")
        keys = ("bifpn_layers", "lambda_beacon", "beacon_steps", "beacon_samples", "beacon_threshold")
        found = {}
        for chain in plan.chains:
            values = chain.stages["segmenter"].parameters
            backbone = values["backbone"].removeprefix("tf_efficientnet_").removesuffix(".aa_in1k")
            encoder = chain.stages["classifier"].parameters
            assert encoder["batch_size"] == values["batch_size"] == {"b3": 16, "b5": 8, "b7": 6}[backbone]
            assert encoder["backbone"] == values["backbone"] and values["initial"] == "classifier"
            assert ("affinity" in chain.name) == ("affinity" in chain.stages)
            found[chain.name] = (backbone, *(values.get(key) for key in keys))
        return found

    none = (None,) * 4
    assert segmenters(3) == {
        "muscle": ("b7", 3, 0.05, 7, 128, "mean"),
        "muscle-b5": ("b5", 3, 0.05, 7, 128, "mean"),
        "muscle-b3": ("b3", 3, 0.05, 7, 128, "mean"),
        "no-beacon": ("b7", 3, *none),
        "no-beacon-b5": ("b5", 3, *none),
        "no-beacon-b3": ("b3", 3, *none),
        "no-beacon-b3-bifpn2": ("b3", 2, *none),
        "no-beacon-b3-bifpn1": ("b3", 1, *none),
    }
    settings = {
        "no-beacon": none,
        "tau0.5": (0.05, 7, 128, 0.5),
        "k64": (0.05, 7, 64, "mean"),
        "muscle": (0.05, 7, 128, "mean"),
        "k256": (0.05, 7, 256, "mean"),
        "steps5": (0.05, 5, 128, "mean"),
        "steps9": (0.05, 9, 128, "mean"),
        "lambda0.1": (0.1, 7, 128, "mean"),
    }
    assert segmenters(4) == {
        f"{name}{network}{labels}": ("b5" if network else "b7", 3, *values)
        for name, values in settings.items()
        for network in ("", "-b5")
        for labels in ("", "-affinity")
    }


def test_made_images_laid_last_have_their_own_tolerance_and_voc_can_have_the_masks_of_sbd() -> None:
    study = WORKFLOW / "studies/muscle_figure8.yaml"
    for chain in planned(study, WORKFLOW / "presets/shapes-muscle.yaml").chains:
        assert chain.evaluations["segmenter"].parameters["boundary_tolerance"] == 1
    values = overlay(read_yaml(WORKFLOW / "presets/voc12-muscle.yaml"), read_yaml(study))
    said = re.search(r"dataset: \{.*source: folder.*\}", study.read_text(encoding="utf-8"))
    assert said
    config = load_config(overlay(values, yaml.safe_load(said[0])))
    assert config.dataset.source == "folder" and {each.evaluate.boundary_tolerance for each in config.experiments.values()} == {5}


def test_the_rows_of_muscle_have_one_budget_and_the_small_studies_share_pseudo_masks() -> None:
    plan = planned(WORKFLOW / "studies/muscle.yaml")
    rows = {chain.name: chain for chain in plan.chains if chain.seed == 0}
    trained = ["baseline", "hcl", "hcl-probabilities", "hcl+imc", "hcl+imc+pixc", "hcl+imc+pixc-relu", "mcl"]
    assert [name for name in rows if name in trained] == trained
    classifiers = {name: chain.stages["classifier"] for name, chain in rows.items()}
    assert len({stage.id for stage in classifiers.values()}) == len({classifiers[name].id for name in trained}) == len(trained)
    for name in ("hcl+imc+pixc", "hcl+imc+pixc-relu", "mcl", "hcl+imc"):  # M and M', of one training
        other = "hcl+imc-attended" if name == "hcl+imc" else f"{name}-plain"
        assert classifiers[other].id == classifiers[name].id and rows[other].stages["cams"].id != rows[name].stages["cams"].id
    assert {classifiers[name].parameters.get("pixel_vectors") for name in ("hcl+imc+pixc", "hcl+imc+pixc-relu")} == {"background", "relu"}
    budget = {"backbone", "epochs", "batch_size", "lr", "head_lr_factor", "resize", "crop_size", "output_stride", "optimizer"}
    assert len({str({key: stage.parameters[key] for key in sorted(budget)}) for stage in classifiers.values()}) == 1
    assert all(classifiers[name].id == classifiers["mcl"].id for name in ("refined-affinity", "refined-boundary"))
    beacon = planned(WORKFLOW / "studies/muscle_beacon.yaml")
    refined = {chain.seed: chain.stages["pseudo"].id for chain in plan.chains if chain.name == "refined-boundary"}
    made = {chain.seed: chain.stages["pseudo"].id for chain in beacon.chains if "pseudo" in chain.stages}
    assert refined.items() <= made.items() and set(made) == set(range(5))
    for seed in made:
        segmenters = {chain.name: chain.stages["segmenter"].parameters for chain in beacon.chains if chain.seed == seed}
        keys = ("loss", "beacon_sign", "beacon_from", "initial", "supervision")
        assert {name: tuple(values.get(key) for key in keys) for name, values in segmenters.items()} == {
            "no-beacon": (None, None, None, None, "pseudo masks"),
            "beacon": ("beacon", "pair", 0.25, None, "pseudo masks"),
            "beacon-point": ("beacon", "point", 0, None, "pseudo masks"),
            "classifier-start": (None, None, None, "classifier", "pseudo masks"),
            "upper-bound": (None, None, None, None, "masks"),
        }
        assert {values["decoder"] for values in segmenters.values()} == {"bifpn"}
    assert all(chain.evaluations["segmenter"].parameters["boundary_tolerance"] == 3 for chain in beacon.chains)


def test_the_study_of_recipes_has_the_defaults_and_one_change_in_each_other_row() -> None:
    """Apart from rows of other backbones and systems; what a mask may choose is judged on true masks, what tags may choose on tags."""
    rows = {chain.name: chain for chain in planned(WORKFLOW / "studies/recipes.yaml").chains if chain.seed == 0}
    for kind in ("segmenter", "classifier"):
        trained = {name: chain.stages[kind].parameters for name, chain in rows.items() if name.startswith(kind)}
        plain = trained[kind]
        assert (plain["optimizer"], plain["lr"], plain["warmup"]) == ("adamw", "auto", 0.05)
        for name, values in trained.items():
            changed = {key for key in plain.keys() & values.keys() if plain[key] != values[key]}
            assert name == kind or len(changed) == 1 or changed == {"optimizer", "warmup"}, name
    assert {chain.experiment.supervision for name, chain in rows.items() if name.startswith("segmenter")} == {"masks"}
    for table in planned(WORKFLOW / "studies/recipes.yaml").config.tables.values():
        judged = {"segmenter"} if table.compare == "segmenter" else {"classifier"}
        assert {value.split(".")[0] for value in table.values if not value.startswith("cost.")} == judged


@pytest.mark.parametrize("data", ["voc12", "coco14"])
def test_the_presets_of_apc_have_the_papers_values(data: str) -> None:
    chain = planned(WORKFLOW / f"presets/{data}-apc.yaml").chains[0]
    network, tests = chain.experiment.classifier, chain.experiment.predict
    assert isinstance(network, ApcClassifier) and network.backbone.startswith("vit_base_patch16_384.")
    assert (network.resize, network.crop_size, network.output_stride, network.batch_size, network.epochs) == ("square", 384, 16, 16, 15)
    assert (network.pooling, network.k, network.theta, network.epsilon, network.hv_bilstm) == ("adaptive", 6, 0.9, 0.85, True)
    assert (network.lambda_segmentation, network.lambda_contrast, network.optimizer) == (0.02, 0.01, "adam")
    for images in (10_582, 82_783):
        steps = -(-images // network.batch_size)
        rates = [network.lr * lr_factor(network, epoch * steps, 15 * steps) for epoch in range(15)]
        assert rates == pytest.approx([1e-3] * network.head_epochs + [1e-4] * 13) and network.head_epochs == 2
    assert (tests.resize, chain.experiment.cams.resize, tests.scales, tests.crf) == (960, 960, (1.0,), "vitpcm")
    known = {name: chain.stages[name].parameters.get("image_labels", False) for name in ("pseudo", "end_to_end", "end_to_end-labels")}
    assert known == {"pseudo": True, "end_to_end": False, "end_to_end-labels": True} and "segmenter" not in chain.stages
    # "The predicted category of each patch is directly mapped onto each pixel", and no word of epochs without that.
    assert (network.label_scores, network.label_refinement, network.label_confidence, network.label_from) == ("probability", "none", 0, 0)
    assert network.train_blocks is None and tests.source == "decoder"


def test_of_the_small_study_of_apc_one_row_has_the_presets_labels() -> None:
    rows = {chain.name: chain.stages["classifier"].parameters for chain in planned(WORKFLOW / "studies/apc.yaml").chains if chain.seed == 0}
    preset = planned(WORKFLOW / "presets/voc12-apc.yaml").chains[0].stages["classifier"].parameters
    labels = {"label_scores", "label_refinement", "label_confidence"}
    assert {key: rows["literal"][key] for key in labels} == {key: preset[key] for key in labels}
    assert {key for key, value in rows["apc"].items() if rows["literal"].get(key) != value} == labels | {
        "label_dilations",
        "label_iterations",
    }


@pytest.mark.parametrize("study", ["apc", "apc_table8"])
def test_the_components_of_apc_come_one_by_one(study: str) -> None:
    files = [WORKFLOW / f"studies/{study}.yaml"]
    plan = planned(*files if study == "apc" else (WORKFLOW / "presets/voc12-apc.yaml", *files))
    chains = {chain.name: chain for chain in plan.chains if chain.seed == 0 and chain.name != "literal"}
    parts = {}
    for name in ("vit", "vit+bilstm", "vit+bilstm+crf", "vit+bilstm+crf+akp", "apc"):
        network = chains[name].experiment.classifier
        assert isinstance(network, ApcClassifier)
        tests = chains[name].stages["end_to_end"].parameters
        parts[name] = (network.hv_bilstm, tests["crf"], network.pooling, network.lambda_contrast)
    assert list(parts.values()) == [
        (False, "none", "max", 0),
        (True, "none", "max", 0),
        (True, "vitpcm", "max", 0),
        (True, "vitpcm", "adaptive", 0),
        (True, "vitpcm", "adaptive", 0.01),
    ]
    trainings = {name: chain.stages["classifier"] for name, chain in chains.items()}
    assert trainings["vit+bilstm"].id == trainings["vit+bilstm+crf"].id
    assert len({stage.id for stage in trainings.values()}) == len(trainings) - 1
    own = {"pooling", "k", "theta", "hv_bilstm", "lambda_contrast", "epsilon"}
    assert len({str({key: value for key, value in stage.parameters.items() if key not in own}) for stage in trainings.values()}) == 1


@pytest.mark.parametrize("study", ["apc", "apc_table7"])
def test_the_poolings_of_apc_differ_in_nothing_else(study: str) -> None:
    files = [WORKFLOW / f"studies/{study}.yaml"]
    plan = planned(*files if study == "apc" else (WORKFLOW / "presets/voc12-apc.yaml", *files))
    rows = {chain.name: chain.stages["classifier"].parameters for chain in plan.chains if chain.seed == 0}
    full = rows["apc"]
    assert (full["pooling"], full["k"], full["theta"], full["lambda_contrast"]) == ("adaptive", 6, 0.9, 0.01)
    rest = {key: value for key, value in full.items() if key not in ("k", "theta")}
    assert rows["average"] == {**rest, "pooling": "average"} and rows["max"] == {**rest, "pooling": "max"}
    assert rows["topk"] == {**rest, "pooling": "topk", "k": 6}
    if study == "apc":
        without = {key: value for key, value in rows["max"].items() if key != "epsilon"}
        assert rows["vit+bilstm+crf"] == {**without, "lambda_contrast": 0}


def test_the_studies_of_apc_share_their_trainings() -> None:
    preset = WORKFLOW / "presets/voc12-apc.yaml"
    numbers = (*(f"table{number}" for number in (1, 2, 3, 5, 6, 7, 8, 9)), "figure4", "figure5", "figure6")
    plans = {number: planned(preset, WORKFLOW / f"studies/apc_{number}.yaml") for number in numbers}
    ids = {number: {chain.stages["classifier"].id for chain in plan.chains} for number, plan in plans.items()}
    own = planned(preset).chains[0].stages["classifier"].id
    assert all(own in each for each in ids.values())
    assert all(ids[number] == {own} for number in ("table1", "table2", "table3", "table6", "figure6"))
    assert ids["table9"] < ids["table5"] < ids["table8"] and ids["table7"] & ids["table8"] == {own}
    assert (len(ids["figure4"]), len(ids["figure5"]), len(ids["figure5"] & ids["table5"])) == (16, 16, 2)
    sizes = [chain.stages["end_to_end"].parameters["resize"] for chain in plans["table1"].chains]
    assert sizes == [640, 800, 960, 1120]
