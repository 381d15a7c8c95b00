"""Presets and studies: each loads and plans without its data; a study's tables show what is planned, and beside it what the paper prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from presets import WORKFLOW, planned, rows_of

from wsss_core.config import read_yaml
from wsss_core.data.voc import CLASSES
from wsss_core.report.names import METRICS, RULES
from wsss_core.report.published import find_published, read_published
from wsss_core.report.tables import _labels

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
    "voc12-apc": ("apc", (1, 2, 3, 5, 6, 7, 8, 9)),
    "coco14-apc": ("apc", (4, 5)),
    "shapes-apc": ("apc", (7, 8, 9)),
}
"""The system of a preset, and its tables whose study makes sense over it."""
FIGURES: dict[str, tuple[int | str, ...]] = {
    "voc12-rsa-cfc": (7,),
    "shapes-rsa-cfc": (7,),
    "voc12-isim": (4, 5),
    "voc12-muscle": (8, "A10"),
    "shapes-muscle": (8, "A10"),
    "voc12-apc": (4, 5, 6),
    "shapes-apc": (4, 6),
}
SOURCES = {
    "rsa_cfc": ("Liu et al. 2023", "doi:10.1371/journal.pone.0288596"),
    "isim": ("Bircanoglu and Arica 2022", "arXiv:2211.12455"),
    "muscle": ("Yuan et al. 2023", "doi:10.1016/j.patcog.2022.109298"),
    "apc": ("Wu et al. 2024", "arXiv:2407.10649"),
}


def over(preset: str, study: str) -> Any:
    return pytest.param(WORKFLOW / f"presets/{preset}.yaml", WORKFLOW / f"studies/{study}.yaml", id=f"{preset}-{study}")


OVER_TABLES = [over(preset, f"{system}_table{number}") for preset, (system, numbers) in TABLES.items() for number in numbers]
OVER = [*OVER_TABLES, *(over(preset, f"{TABLES[preset][0]}_figure{number}") for preset, numbers in FIGURES.items() for number in numbers)]
OURS = {"rsa_cfc_table7": {"cam"}}
"""Rows of a study that its paper's table does not have."""
DASHES = {"isim_table7": 14, "isim_table11": 12}
"""Cells without a figure: a CAM has no walk and no CRF; of six methods only the segmenters are known."""
"""The backbones of ISIM."""


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
        judged |= {("cost", name) for chain in plan.chains for name in chain.stages}
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
        own = set(_labels([plan.chain_spec(chain) for chain in plan.chains], table.columns))
        assert own < columns if table.columns == "dataset" else own == columns  # a run has one data set
    assert len(rows) * len(columns) - len(published) == DASHES.get(study.stem, 0)


def test_the_published_figures_name_their_source() -> None:
    for path in FILES:
        system, number = path.stem.split("_table")
        source, identifier = SOURCES[system]
        for each in read_published(path):
            assert each.about.startswith(f"{source}, Table {number}: ") and each.about.endswith(f"; {identifier}"), each.place
