"""Published figures: how the file is read and found, where they stand in a table, what the Markdown says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from wsss_core.config import Table
from wsss_core.errors import UserError
from wsss_core.report.markdown import to_markdown
from wsss_core.report.published import PROJECT, find_published, read_published
from wsss_core.report.tables import COLUMNS, make_table, write_table

HEAD = "row,column,value,about\n"
ABOUT = "Cow et al. 1999, Table 1: CAMs, farm train; doi:10.1/moo"


def record(name: str = "base", seed: int = 0, lr: float = 0.1, miou: float = 0.543, split: str = "train") -> dict[str, Any]:
    figure = {"rule": "auto", "threshold": 0.3, "miou": miou, "mfdr": 0.2, "mfnr": 0.3, "iou": {"cow": miou}}
    protocol = {"image_labels": True, "crf": "none", "scales": [1.0], "flip": True}
    return {
        "name": name,
        "seed": seed,
        "dataset": "farm",
        "values": {"classifier": {"lr": lr, "batch_size": 16}},
        "stages": {},
        "evaluations": {"cams": {"split": split, "protocol": protocol, "figures": [figure]}},
    }


def write(tmp_path: Path, *lines: str, head: str = HEAD) -> Path:
    path = tmp_path / "published.csv"
    path.write_text(head + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def table_of(tmp_path: Path, table: Table, *lines: str, records: list[dict[str, Any]] | None = None) -> tuple[pd.DataFrame, str]:
    published = read_published(write(tmp_path, *(f'{line},"{ABOUT}"' for line in lines)))
    frame = make_table(records or [record()], table, published)
    return frame, to_markdown(frame, table, "t")


MIOU = Table(values=("cams.train.miou",))


def test_stands_beside_ours_in_fractions_and_as_printed(tmp_path: Path) -> None:
    frame, text = table_of(tmp_path, MIOU, "base,cams.train.miou,56.80", records=[record(seed=s, miou=0.54 + s / 100) for s in (0, 1)])
    line = frame.iloc[0]
    assert tuple(frame.columns) == COLUMNS
    assert (line["mean"], line["n"], line["published"]) == (pytest.approx(0.545), 2, pytest.approx(0.568))
    assert (line["printed"], line["about"]) == ("56.80", ABOUT)
    assert "| base | 54.5 ± 0.7 (56.80) | 2 |" in text
    assert "In parentheses: published, on the data that the notes name." in text
    assert (
        f"- In parentheses: as published, not measured here. Data, weights and budget of ours may be different. Sources:\n  - {ABOUT}"
        in text
    )


def test_other_methods_stand_below_ours(tmp_path: Path) -> None:
    frame, text = table_of(
        tmp_path, MIOU, "SEC [10] (VGG16),cams.train.miou,50.7", "base,cams.train.miou,56.75", records=[record(), record("own")]
    )
    assert list(frame["row"]) == ["base", "own", "SEC [10] (VGG16)"]
    last = frame.iloc[-1]
    assert (last["n"], last["published"], last["figure"]) == (0, pytest.approx(0.507), "cams.train.miou")
    assert np.isnan(last["mean"]) and np.isnan(last["std"])
    assert np.isnan(frame.iloc[1]["published"]) and frame.iloc[1]["printed"] == ""
    assert "| base | 54.3 (56.75) | 1 |\n| own | 54.3 | 1 |\n| SEC [10] (VGG16) | (50.7) | 0 |" in text
    assert text.count(ABOUT) == 1


def test_without_any_the_table_says_nothing_of_them() -> None:
    assert "arenthes" not in to_markdown(make_table([record()], MIOU), MIOU, "t")


def test_columns_by_key_take_its_values_as_labels(tmp_path: Path) -> None:
    table = Table(rows="classifier.lr", columns="classifier.batch_size", values=("cams.train.miou",))
    records = [record("a", lr=0.5), record("b", lr=1.0)]
    frame, text = table_of(tmp_path, table, "0.5,16,54.87", "0.5,32,56.75", "1.5,16,47.26", records=records)
    assert set(frame["figure"]) == {"cams.train.miou"}
    assert "| CAMs train mIoU: classifier.lr \\ classifier.batch_size | 16 | 32 | n |" in text
    assert "| 0.5 | 54.3 (54.87) | (56.75) | 1 |\n| 1 | 54.3 | - | 1 |\n| 1.5 | (47.26) | - | 0 |" in text


def test_a_figure_that_only_the_paper_has(tmp_path: Path) -> None:
    table = Table(values=("cams.train.miou", "segmenter.test.miou"))
    _, text = table_of(tmp_path, table, "base,segmenter.test.miou,77.4")
    assert "| base | 54.3 | (77.4) | 1 |" in text
    assert "- Segmenter, test: no figures of ours." in text
    with pytest.raises(UserError, match=r"no figure is called 'segmenter\.val\.miou'"):
        table_of(tmp_path, Table(values=("segmenter.val.miou",)), "base,segmenter.test.miou,77.4")


def test_a_wide_table_names_its_sources_under_each_part(tmp_path: Path) -> None:
    names = [f"{subject}.val.{metric}" for subject in ("segmenter", "pseudo") for metric in ("miou", "mfdr", "mfnr", "iou.cow", "iou.pig")]
    _, text = table_of(tmp_path, MIOU, *(f"SEC,{name},12.{i}" for i, name in enumerate(names)))
    cams, segmenter, pseudo = text.split("\n## ")[1:]
    assert ABOUT not in cams
    assert "| SEC | (12.0) | (12.1) | (12.2) | (12.3) | (12.4) | 0 |" in segmenter and ABOUT in segmenter
    assert "| SEC | (12.5) |" in pseudo and ABOUT in pseudo


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("base,cams.train.miou,high,x",), "line 2: value: expected a number in percent, as printed, got 'high'"),
        (("base,cams.train.miou,nan,x",), "line 2: value"),
        (("base,cams.train.miou,568,x",), "line 2: value"),
        (("base,cams.train.miou,,x",), "line 2: no value"),
        (("base,cams.train.miou,1,",), "line 2: no about"),
        (("base,cams.train.miou",), "line 2: no value and no about"),
        (("base,cams.train.miou,1,Cow, 1999",), "line 2: too many values; a text with a comma stands in quotes"),
        (("a,b,1,x", '"a",b,2,y'), "line 3: row 'a', column 'b': this cell has a value already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    path = write(tmp_path, *lines)
    with pytest.raises(UserError) as error:
        read_published(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: missing column value, about; expected row,column,value,about"):
        read_published(write(tmp_path, head="row,column,Value\n"))
    with pytest.raises(UserError, match="line 1: missing column row"):
        read_published(write(tmp_path, head=""))
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"row,column,value,about\n\xff\xfe\n")
    with pytest.raises(UserError, match=r"binary\.csv: not a CSV file"):
        read_published(binary)
    with pytest.raises(UserError, match=r"gone\.csv: cannot be read"):
        read_published(tmp_path / "gone.csv")


def test_a_spreadsheet_s_byte_order_mark_is_no_part_of_the_head(tmp_path: Path) -> None:
    path = tmp_path / "published.csv"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.encode() + b"a,b,1.0,x\r\n")
    assert read_published(path)[0].printed == "1.0"


def test_a_column_that_is_no_figure_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "base,mIoU,56.8,x")
    with pytest.raises(UserError, match=r"published\.csv: line 2: column: expected a figure such as cams\.train\.miou, got 'mIoU'"):
        make_table([record()], MIOU, read_published(path))


def test_the_working_directory_comes_before_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inside = "workflow/published/rsa_cfc_table1.csv"
    assert find_published(inside) == PROJECT / inside
    own = tmp_path / inside
    own.parent.mkdir(parents=True)
    own.write_text(HEAD)
    assert find_published(inside).resolve() == own
    assert find_published(str(own)) == own
    with pytest.raises(UserError, match=r"^published: workflow/published/gone\.csv: no such file, neither here nor in "):
        find_published("workflow/published/gone.csv")


def test_write_table_reads_the_file(tmp_path: Path) -> None:
    source = tmp_path / "experiment.json"
    source.write_text(json.dumps(record()))
    path = write(tmp_path, f'base,cams.train.miou,56.80,"{ABOUT}"')
    write_table([source], Table(values=MIOU.values, published=str(path)), "t", tmp_path)
    written = pd.read_csv(tmp_path / "t.csv", dtype={"printed": str}).iloc[0]
    assert (written["published"], written["printed"], written["about"]) == (pytest.approx(0.568), "56.80", ABOUT)
    assert "| base | 54.3 (56.80) | 1 |" in (tmp_path / "t.md").read_text(encoding="utf-8")
