"""Presets and studies: each loads and plans without its data; a study's tables show what is planned, and beside it what the paper prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from wsss_core.config import read_config, read_yaml
from wsss_core.data.voc import CLASSES
from wsss_core.plan import Outside, Plan, make_plan
from wsss_core.report.published import find_published, read_published
from wsss_core.report.tables import METRICS, RULES, _labels

WORKFLOW = Path(__file__).parents[2] / "workflow"
PRESETS = sorted((WORKFLOW / "presets").glob("*.yaml"))
STUDIES = sorted((WORKFLOW / "studies").glob("*.yaml"))
ALONE = [path for path in STUDIES if "dataset" in read_yaml(path)]
FILES = sorted((WORKFLOW / "published").glob("*.csv"))
TABLES = {"voc12-rsa-cfc": "123457", "coco14-rsa-cfc": "1267", "shapes-rsa-cfc": "17"}
"""The tables of RSA + CFC whose study makes sense over a preset."""


def over(preset: str, study: str) -> Any:
    return pytest.param(WORKFLOW / f"presets/{preset}.yaml", WORKFLOW / f"studies/{study}.yaml", id=f"{preset}-{study}")


OVER_TABLES = [over(preset, f"rsa_cfc_table{number}") for preset, numbers in TABLES.items() for number in numbers]
OVER = [*OVER_TABLES, over("voc12-rsa-cfc", "rsa_cfc_figure7"), over("shapes-rsa-cfc", "rsa_cfc_figure7")]
OURS = {"cam"}
"""Rows that no paper has a figure for."""


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
    assert tested == {path.stem for path in STUDIES if re.match(r"rsa_cfc_(table|figure)\d", path.stem)}
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
    assert tables == [f"rsa-cfc-table{study.stem[-1]}"]
    table = plan.config.tables[tables[0]]
    assert table.published == f"workflow/published/{study.stem}.csv"
    published = read_published(find_published(table.published))
    rows, columns = {each.row for each in published}, {each.column for each in published}
    ours = rows_of(plan, tables[0]) - OURS
    assert ours and ours <= rows
    if table.columns is None:
        assert columns <= set(table.values)
    else:
        assert columns == set(_labels([plan.chain_spec(chain) for chain in plan.chains], table.columns))
    assert {(each.row, each.column) for each in published} == {(row, column) for row in rows for column in columns}


def test_the_published_figures_name_their_source() -> None:
    for path in FILES:
        number = path.stem[-1]
        assert all(f"Liu et al. 2023, Table {number}: " in each.about and "doi:" in each.about for each in read_published(path)), path.name


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
