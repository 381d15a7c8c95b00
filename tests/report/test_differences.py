"""Paired differences over seeds: by hand, with seeds missing, at the border of a decision, and where a table shows them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from wsss_core.cli import app
from wsss_core.config import Table
from wsss_core.errors import UserError
from wsss_core.report.differences import DIFFERENCES, paired_difference, verdict
from wsss_core.report.markdown import to_markdown
from wsss_core.report.published import Published
from wsss_core.report.tables import COLUMNS, check_keys, make_table, write_table

MIOU = "cams.train.miou"
OTHERS = ("mfdr", "mfnr", "boundary_f")


def record(name: str, seed: int, miou: float, *, lr: float = 0.1, scale: float = 1.0, **values: float) -> dict[str, Any]:
    figure = {"rule": "auto", "threshold": 0.3, "miou": miou, **values}
    protocol = {"image_labels": True, "crf": "none", "scales": [scale], "flip": True}
    return {
        "name": name,
        "seed": seed,
        "dataset": "farm",
        "values": {"classifier": {"lr": lr}, "cams": {"scales": [scale]}},
        "stages": {"classifier": {"seconds": 100.0 + seed + 50 * (name == "own")}},
        "evaluations": {"cams": {"split": "train", "protocol": protocol, "figures": [figure]}},
    }


def rows(**figures: dict[int, float]) -> list[dict[str, Any]]:
    """Records of experiments by name, from their mIoU by seed."""
    return [record(name, seed, miou) for name, by_seed in figures.items() for seed, miou in by_seed.items()]


def compared(records: list[dict[str, Any]], compare: str = "base", **table: Any) -> tuple[pd.DataFrame, str]:
    """The table of these records, and what its Markdown says below the heading of the differences."""
    settings = Table(**{"values": (MIOU,), "compare": compare, **table})
    frame = make_table(records, settings)
    text = to_markdown(frame, settings, "t")
    return frame.set_index("row"), text.partition(f"## Differences from `{compare}`\n\n")[2]


BASE = {0: 0.40, 1: 0.50, 2: 0.45}
OWN = {0: 0.41, 1: 0.52, 2: 0.48}
"""1, 2 and 3 points above `BASE`."""


def test_by_hand() -> None:
    frame, text = compared(rows(base=BASE, own=OWN))
    half = 0.04303 / math.sqrt(3)  # t of two degrees of freedom, times a deviation of one point
    own = frame.loc["own", list(DIFFERENCES)].tolist()
    assert own == [pytest.approx(0.02), pytest.approx(0.02 - half, abs=1e-5), pytest.approx(0.02 + half, abs=1e-5), 3]
    assert text.startswith("| experiment | CAMs train mIoU | n |\n| --- | ---: | ---: |\n| own | +2.0 [-0.5, 4.5] undecided | 3 |\n\n")
    assert "Points of percent: row minus `base`" in text and "95% confidence interval" in text


def test_as_scipy_has_it() -> None:
    own, base = np.random.default_rng(0).random((2, 5))
    found = paired_difference(dict(enumerate(own)), dict(enumerate(base)))
    interval = stats.ttest_rel(own, base).confidence_interval(0.95)
    assert list(found.values()) == pytest.approx([(own - base).mean(), interval.low, interval.high, 5])


def test_pairs_are_by_seed_not_by_place() -> None:
    frame, _ = compared(rows(base=BASE, own=dict(reversed(OWN.items()))))
    assert frame.loc["own", "difference_high"] - frame.loc["own", "difference_low"] == pytest.approx(2 * 0.04303 / math.sqrt(3), abs=1e-5)


def test_seeds_of_one_row_alone_are_left_out() -> None:
    frame, text = compared(rows(base={**BASE, 7: 0.0}, own={**OWN, 8: 1.0}, other={9: 0.4}))
    assert frame.loc["own", "difference"] == pytest.approx(0.02)
    assert frame["difference_n"].to_dict() == {"base": 0, "own": 3, "other": 0}
    assert frame.loc["other", list(DIFFERENCES[:3])].isna().all()
    assert "other" not in text


def test_a_figure_that_one_of_a_pair_lacks_is_no_pair() -> None:
    records = rows(base=BASE, own=OWN)
    del records[-1]["evaluations"]["cams"]["figures"][0]["miou"]
    records[0]["evaluations"]["cams"]["figures"][0]["miou"] = None
    frame, text = compared(records)
    assert frame.loc["own", "difference_n"] == 1 and frame.loc["own", "difference"] == pytest.approx(0.02)
    assert "| own | +2.0 undecided | 1 |" in text


def test_one_seed_decides_nothing() -> None:
    frame, text = compared(rows(base={0: 0.1}, own={0: 0.9}))
    assert frame.loc["own", "difference"] == pytest.approx(0.8)
    assert frame.loc["own", ["difference_low", "difference_high"]].isna().all()
    assert "| own | +80.0 undecided | 1 |" in text


def test_decided_without_a_word() -> None:
    own = {seed: miou + 0.1 for seed, miou in OWN.items()}
    below = {seed: miou - 0.1 for seed, miou in OWN.items()}
    _, text = compared(rows(base=BASE, own=own, below=below))
    assert "| own | +12.0 [9.5, 14.5] | 3 |\n| below | -8.0 [-10.5, -5.5] | 3 |" in text


def test_rows_of_the_same_stages_are_the_same() -> None:
    frame, text = compared(rows(base=BASE, own=BASE))
    assert frame.loc["own", list(DIFFERENCES)].tolist() == [0, 0, 0, 3]
    assert "| own | +0.0 [0.0, 0.0] same | 3 |" in text


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        ((0.02, 0.0, 0.04), "undecided"),
        ((-0.02, -0.04, 0.0), "undecided"),
        ((0.02, 1e-9, 0.04), ""),
        ((-0.02, -0.04, -1e-9), ""),
        ((0.0, -0.01, 0.01), "undecided"),
        ((0.02, math.nan, math.nan), "undecided"),
        ((0.0, 0.0, 0.0), "same"),
        ((0.0, math.nan, math.nan), "same"),
    ],
)
def test_the_border_belongs_to_the_interval(figures: tuple[float, float, float], word: str) -> None:
    assert verdict(*figures) == word


def test_what_both_rows_have_in_common_cancels() -> None:
    records = [
        rows(base=BASE, own=OWN),
        rows(**{name: {s: v + 0.3 for s, v in row.items()} for name, row in (("base", BASE), ("own", OWN))}),
    ]
    plain, shifted = (compared(each)[0].loc["own", list(DIFFERENCES)].astype(float) for each in records)
    assert shifted.tolist() == pytest.approx(plain.tolist(), abs=1e-12)


def test_turned_round_the_signs_change() -> None:
    records = rows(base=BASE, own=OWN)
    own, base = compared(records)[0].loc["own"], compared(records, "own")[0].loc["base"]
    assert (base["difference"], base["difference_low"]) == (pytest.approx(-own["difference"]), pytest.approx(-own["difference_high"]))


def test_a_row_may_be_a_value_of_a_key_and_columns_stay_apart() -> None:
    gains = {0.1: 0.0, 0.01: 0.1}
    records = [
        record(f"{lr},{scale}", seed, BASE[seed] + scale / 10 + gains[lr] * scale + seed / 1000 * (lr < 0.1), lr=lr, scale=scale)
        for lr in gains
        for scale in (1.0, 2.0)
        for seed in BASE
    ]
    frame, text = compared(records, "0.1", rows="classifier.lr", columns="cams.scales")
    assert frame.loc["0.01", ["column", "difference"]].values.tolist() == [["1", pytest.approx(0.101)], ["2", pytest.approx(0.201)]]
    assert text.startswith("| CAMs train mIoU: classifier.lr \\ cams.scales | 1 | 2 | n |")
    assert "| 0.01 | +10.1 [9.9, 10.3] | +20.1 [19.9, 20.3] | 3 |" in text


def test_costs_and_published_figures_are_not_compared() -> None:
    table = Table(values=(MIOU, "cost.classifier.seconds"), compare="base")
    seen = [Published("base", MIOU, "30.0", "Cow 1999", "f: line 2"), Published("SEC", MIOU, "50.7", "Cow 1999", "f: line 3")]
    frame = make_table(rows(base=BASE, own=OWN), table, seen)
    assert frame[["row", "figure", "difference_n"]].values.tolist() == [
        ["base", MIOU, 0],
        ["base", "cost.classifier.seconds", 0],
        ["own", MIOU, 3],
        ["own", "cost.classifier.seconds", 0],
        ["SEC", MIOU, 0],
    ]
    assert frame.loc[2, "difference"] == pytest.approx(0.02)
    below = to_markdown(frame, table, "t").partition("## Differences")[2]
    assert "SEC" not in below and "time" not in below and "30.0" not in below


def test_a_wide_table_falls_apart_below_too() -> None:
    names = [f"{subject}.train.{metric}" for subject in ("cams", "pseudo") for metric in ("miou", *OTHERS, "auto.miou")]
    records = [
        record(name, seed, miou, **dict.fromkeys(OTHERS, 0.2)) for name, row in (("base", BASE), ("own", OWN)) for seed, miou in row.items()
    ]
    for each in records:
        each["evaluations"]["pseudo"] = each["evaluations"]["cams"]
    _, text = compared(records, values=names)
    cams, pseudo = text.split("### ")[1:]
    assert cams.startswith("CAMs, train\n\n| experiment | mIoU |") and pseudo.startswith("Pseudo masks, train\n\n| experiment | mIoU |")
    assert "| own | +2.0 [-0.5, 4.5] undecided | +0.0 [0.0, 0.0] same |" in cams
    assert text.count("Points of percent") == 1


def test_alone_there_is_nothing_to_compare() -> None:
    _, text = compared(rows(base=BASE, other={9: 0.4}))
    assert text == "None: no other row has a figure and a seed in common with `base`.\n"


def test_without_compare_there_is_no_trace_of_it() -> None:
    table = Table(values=(MIOU,))
    frame = make_table(rows(base=BASE, own=OWN), table)
    assert tuple(frame.columns) == COLUMNS
    assert "ifference" not in to_markdown(frame, table, "t")


def test_an_unknown_row_is_named_before_and_after_the_training() -> None:
    records = rows(base=BASE, own=OWN)
    with pytest.raises(UserError, match=r"^compare: no row is called 'bsae'; did you mean 'base'\?$"):
        compared(records, "bsae")
    with pytest.raises(UserError, match=r"^tables\.t: compare: no row is called 'fast'; valid: 0\.1$"):
        check_keys(records, Table(rows="classifier.lr", compare="fast"), "t")
    with pytest.raises(
        UserError, match=r"^tables\.t: rows or columns: no configuration key is called 'cams\.scale'; did you mean 'cams\.scales'\?$"
    ):
        check_keys(records, Table(columns="cams.scale"), "t")
    check_keys(records, Table(rows="classifier.lr", compare="0.1"), "t")


def test_in_the_files(tmp_path: Path) -> None:
    paths = []
    for i, each in enumerate(rows(base=BASE, own=OWN)):
        paths.append(tmp_path / f"{i}.json")
        paths[-1].write_text(json.dumps(each))
    write_table(paths, Table(values=(MIOU,), compare="base"), "t", tmp_path)
    written = pd.read_csv(tmp_path / "t.csv").set_index("row")
    before = COLUMNS.index("published")
    assert ["row", *written.columns] == [*COLUMNS[:before], *DIFFERENCES, *COLUMNS[before:]]
    assert written.loc["own", "difference"] == pytest.approx(0.02) and np.isnan(written.loc["base", "difference"])
    assert written["difference_n"].tolist() == [0, 3]
    assert "## Differences from `base`" in (tmp_path / "t.md").read_text(encoding="utf-8")
    by_hand = ["table", *map(str, paths), "--value", MIOU, "--compare=base", "--name", "by-hand", "--output", str(tmp_path)]
    assert "| own | +2.0 [-0.5, 4.5] undecided | 3 |" in CliRunner().invoke(app, by_hand).stdout
    assert (tmp_path / "by-hand.csv").read_bytes() == (tmp_path / "t.csv").read_bytes()
