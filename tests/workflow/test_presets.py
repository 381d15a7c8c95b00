"""Presets and studies: each loads and plans without its data; a study's tables show what is planned, and beside it what the paper prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from wsss_core.config import IsimClassifier, MclClassifier, load_config, overlay, read_config, read_yaml
from wsss_core.data.voc import CLASSES
from wsss_core.plan import Outside, Plan, make_plan
from wsss_core.report.published import find_published, read_published
from wsss_core.report.tables import METRICS, RULES, _labels

WORKFLOW = Path(__file__).parents[2] / "workflow"
PRESETS = sorted((WORKFLOW / "presets").glob("*.yaml"))
STUDIES = sorted((WORKFLOW / "studies").glob("*.yaml"))
ALONE = [path for path in STUDIES if "source" in read_yaml(path).get("dataset", {})]
FILES = sorted((WORKFLOW / "published").glob("*.csv"))
TABLES = {
    "voc12-rsa-cfc": ("rsa_cfc", (1, 2, 3, 4, 5, 7)),
    "coco14-rsa-cfc": ("rsa_cfc", (1, 2, 6, 7)),
    "shapes-rsa-cfc": ("rsa_cfc", (1, 7)),
    "voc12-isim": ("isim", tuple(range(1, 12))),
    "shapes-isim": ("isim", ()),
    "voc12-muscle": ("muscle", tuple(range(1, 7))),
    "shapes-muscle": ("muscle", (1,)),
}
"""The system of a preset, and its tables whose study makes sense over it."""
FIGURES: dict[str, tuple[int | str, ...]] = {
    "voc12-rsa-cfc": (7,),
    "shapes-rsa-cfc": (7,),
    "voc12-isim": (4, 5),
    "voc12-muscle": (8, "A10"),
    "shapes-muscle": (8, "A10"),
}
SOURCES = {
    "rsa_cfc": ("Liu et al. 2023", "doi:10.1371/journal.pone.0288596"),
    "isim": ("Bircanoglu and Arica 2022", "arXiv:2211.12455"),
    "muscle": ("Yuan et al. 2023", "doi:10.1016/j.patcog.2022.109298"),
}


def over(preset: str, study: str) -> Any:
    return pytest.param(WORKFLOW / f"presets/{preset}.yaml", WORKFLOW / f"studies/{study}.yaml", id=f"{preset}-{study}")


OVER_TABLES = [over(preset, f"{system}_table{number}") for preset, (system, numbers) in TABLES.items() for number in numbers]
OVER = [*OVER_TABLES, *(over(preset, f"{TABLES[preset][0]}_figure{number}") for preset, numbers in FIGURES.items() for number in numbers)]
OURS = {"rsa_cfc_table7": {"cam"}}
"""Rows of a study that its paper's table does not have."""
DASHES = {"isim_table7": 14, "isim_table11": 12}
"""Cells without a figure: a CAM has no walk and no CRF; of six methods only the segmenters are known."""
NETWORKS = {
    "resnet50.tv_in1k",
    "resnet101.tv_in1k",
    "resnet152.tv_in1k",
    "resnest50d",
    "resnest101e",
    "resnest200e",
    "resnest269e",
}
"""The backbones of ISIM."""


def planned(*paths: Path) -> Plan:
    return make_plan(read_config(*paths), Outside())


def rows_of(plan: Plan, name: str) -> set[str]:
    """The labels of a table's rows, as it will print them."""
    specs = [plan.chain_spec(chain) for chain in plan.chains_of_table(name)]
    return set(_labels(specs, plan.config.tables[name].rows))


@pytest.mark.parametrize("path", [*PRESETS, *ALONE], ids=lambda path: path.stem)
def test_each_loads_and_plans_alone(path: Path) -> None:
    assert planned(path).chains


def test_every_preset_and_every_study_of_a_paper_is_tested() -> None:
    assert {path.stem for path in PRESETS} == set(TABLES)
    tested = {path.stem for parameters in OVER for path in parameters.values[1:]}
    assert tested == {path.stem for path in STUDIES if re.search(r"_(table|figure)[A-Z]?\d+$", path.stem)}
    assert {path.stem for path in FILES} == {name for name in tested if "table" in name}


@pytest.mark.parametrize(("preset", "study"), OVER)
def test_a_study_plans_over_a_preset_and_shows_what_is_planned(preset: Path, study: Path) -> None:
    plan = planned(preset, study)
    for table in plan.config.tables.values():
        assert table.values or "figure" in study.stem
        printed = {each.column for each in read_published(find_published(table.published))} if table.published else set()
        judged = {(subject, stage.parameters["split"]) for chain in plan.chains for subject, stage in chain.evaluations.items()}
        for name in table.values:
            subject, split, *rest = name.split(".")
            metric, *label = rest[1:] if rest[0] in RULES else rest
            assert (subject, split) in judged or name in printed, name
            assert metric in METRICS and (not label or label[0] in CLASSES), name


@pytest.mark.parametrize(("preset", "study"), OVER_TABLES)
def test_every_row_of_a_study_has_its_published_figures(preset: Path, study: Path) -> None:
    plan = planned(preset, study)
    tables = [name for name, table in plan.config.tables.items() if table.published]
    assert tables == [study.stem.replace("_", "-")]
    table = plan.config.tables[tables[0]]
    assert table.published == f"workflow/published/{study.stem}.csv"
    published = read_published(find_published(table.published))
    rows, columns = {each.row for each in published}, {each.column for each in published}
    ours = rows_of(plan, tables[0]) - OURS.get(study.stem, set())
    assert ours and ours <= rows
    if table.columns is None:
        assert columns <= set(table.values)
    else:
        assert columns == set(_labels([plan.chain_spec(chain) for chain in plan.chains], table.columns))
    assert len(rows) * len(columns) - len(published) == DASHES.get(study.stem, 0)


def test_the_published_figures_name_their_source() -> None:
    for path in FILES:
        system, number = path.stem.split("_table")
        source, identifier = SOURCES[system]
        for each in read_published(path):
            assert each.about.startswith(f"{source}, Table {number}: ") and each.about.endswith(f"; {identifier}"), each.place


def test_the_rows_of_the_ablation_differ_as_they_should() -> None:
    plan = planned(WORKFLOW / "presets/voc12-rsa-cfc.yaml", WORKFLOW / "studies/rsa_cfc_table7.yaml")
    classifiers = {chain.name: chain.stages["classifier"].parameters for chain in plan.chains}
    contrast = {"alpha", "present_only"}
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
    assert list(rows) == ["cam", "deeplabcam", "unetcam-learnable", "unetcam-nonlearnable"]
    for values in classifiers.values():
        assert {key: values[key] for key in classifiers["cam"] if key != "system"} == {
            key: value for key, value in classifiers["cam"].items() if key != "system"
        }
    assert classifiers["unetcam-learnable"] == {**classifiers["unetcam-nonlearnable"], "decoder": "unet_transposed"}
    often = {chain.name: chain for chain in planned(WORKFLOW / "studies/isim_frequency.yaml").chains}
    assert often["every-2"].stages["classifier"].id == rows["deeplabcam"].stages["classifier"].id
    assert {name: chain.experiment.classifier.label_epochs for name, chain in often.items()} == {
        "every-1": (2, 3, 4, 5, 6, 7),
        "every-2": (2, 4, 6),
        "every-4": (2, 6),
        "once": (2,),
        "converged": (),
    }


def test_the_preset_of_muscle_has_the_papers_values() -> None:
    chain = planned(WORKFLOW / "presets/voc12-muscle.yaml").chains[0]
    classifier, segmenter, walk = chain.experiment.classifier, chain.experiment.segmenter, chain.stages["walk"].parameters
    assert isinstance(classifier, MclClassifier) and segmenter is not None
    assert (classifier.crop_size, classifier.crop_pair, classifier.attention, classifier.temperature) == (448, 224, "sam", 1)
    assert (classifier.lambda_image, classifier.lambda_pixel, classifier.lambda_region) == (1, 1, 1)
    assert (classifier.image_from, classifier.pixel_from, classifier.region_from, classifier.epochs) == (4, 8, 12, 16)
    assert (classifier.batch_size, segmenter.batch_size, segmenter.bifpn_layers) == (16, 6, 3)
    assert (segmenter.lambda_beacon, segmenter.beacon_steps, segmenter.beacon_samples, segmenter.beacon_threshold) == (0.05, 7, 128, "mean")
    assert (walk["beta"], walk["steps"], chain.stages["boundary"].parameters["backbone"]) == (8, 64, "resnet50.tv_in1k")
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
        assert ids(study, "classifier") == {own["classifier"]} and own["segmenter"] in ids(study, "segmenter")
    assert own["classifier"] in ids("table1", "classifier") & ids("table2", "classifier")
    assert len(ids("table1", "classifier") & ids("figureA10", "classifier")) == 1  # imc in batches of 16
    assert ids("table3", "pseudo") == ids("table5", "pseudo") == {own["pseudo"]} < ids("table4", "pseudo") < ids("table2", "pseudo")
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
            assert values["batch_size"] == {"b3": 16, "b5": 8, "b7": 6}[backbone]
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
    assert list(rows)[:5] == ["baseline", "hcl", "hcl+imc", "hcl+imc+pixc", "mcl"]
    classifiers = {name: chain.stages["classifier"] for name, chain in rows.items()}
    assert len({stage.id for stage in classifiers.values()}) == 5
    budget = {"backbone", "epochs", "batch_size", "lr", "head_lr_factor", "resize", "crop_size", "output_stride", "optimizer"}
    assert len({str({key: stage.parameters[key] for key in sorted(budget)}) for stage in classifiers.values()}) == 1
    assert all(classifiers[name].id == classifiers["mcl"].id for name in ("mcl-multi-scale", "refined-affinity", "refined-boundary"))
    beacon = planned(WORKFLOW / "studies/muscle_beacon.yaml")
    refined = {chain.seed: chain.stages["pseudo"].id for chain in plan.chains if chain.name == "refined-boundary"}
    assert {chain.seed: chain.stages["pseudo"].id for chain in beacon.chains} == refined
    for seed in refined:
        segmenters = [chain.stages["segmenter"].parameters for chain in beacon.chains if chain.seed == seed]
        assert [(values["bifpn_layers"], values.get("loss")) for values in segmenters] == [
            (layers, loss) for layers in (1, 2, 3) for loss in (None, "beacon")
        ]
    assert all(chain.evaluations["segmenter"].parameters["boundary_tolerance"] == 3 for chain in beacon.chains)
