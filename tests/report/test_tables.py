"""Tables from made records: names of figures, averages over seeds, protocol columns, and what must not be averaged."""

import json
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest

from wsss_core.config import Table
from wsss_core.errors import UserError
from wsss_core.report.markdown import to_markdown
from wsss_core.report.published import Published
from wsss_core.report.tables import COLUMNS, main_figures, make_table, write_table

PROTOCOL = {"image_labels": True, "crf": "none", "scales": [0.5, 1.0], "flip": True}


def entry(rule, threshold, miou):
    per_class = {"background": miou, "cow": None if miou > 0.9 else miou / 2}
    return {
        "rule": rule,
        "threshold": threshold,
        "miou": miou,
        "mfdr": 0.2,
        "mfnr": 0.3,
        "iou": per_class,
        "fdr": per_class,
        "fnr": per_class,
    }


def record(name="base", seed=0, lr=0.1, scales=(1,), cams=0.4, segmenter=0.5):
    values = {"seeds": [0, 1, 2], "classifier": {"lr": lr, "system": "cam"}, "cams": {"scales": list(scales)}, "segmenter": {"epochs": 3}}
    evaluations = {
        "classifier": {
            "split": "val",
            "protocol": PROTOCOL,
            "figures": [{"rule": "none", "threshold": None, "map": 0.8, "ap": {"cow": 0.8}}],
        },
        "cams": {
            "split": "train",
            "protocol": PROTOCOL,
            "figures": [entry("fixed", 0.3, cams), entry("oracle", 0.2 + seed / 10, cams + 0.05)],
        },
    }
    if segmenter is None:
        values["segmenter"] = None
    else:
        evaluations["segmenter"] = {
            "split": "val",
            "protocol": {**PROTOCOL, "image_labels": False},
            "figures": [entry("argmax", None, segmenter)],
        }
    return {"name": name, "seed": seed, "dataset": "voc12", "values": values, "stages": {}, "evaluations": evaluations}


def cell(frame, **where):
    for key, value in where.items():
        frame = frame[frame[key] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_mean_and_sample_deviation_over_seeds():
    frame = make_table([record(seed=s, cams=v) for s, v in enumerate((0.40, 0.42, 0.47))], Table(values=("cams.train.miou",)))
    line = cell(frame, row="base")
    assert line["mean"] == pytest.approx(0.43)
    assert line["std"] == pytest.approx(np.std([0.40, 0.42, 0.47], ddof=1))
    assert line["n"] == 3


def test_one_seed_has_no_deviation():
    assert np.isnan(cell(make_table([record()], Table(values=("segmenter.val.miou",))), row="base")["std"])


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("cams.train.miou", 0.4, "fixed"),
        ("cams.train.fixed.miou", 0.4, "fixed"),
        ("cams.train.oracle.miou", 0.45, "oracle"),
        ("segmenter.val.argmax.iou.cow", 0.25, "argmax"),
        ("segmenter.val.iou.cow", 0.25, "argmax"),
        ("classifier.val.map", 0.8, "none"),
        ("classifier.val.ap.cow", 0.8, "none"),
    ],
)
def test_names(name, value, rule):
    line = cell(make_table([record()], Table(values=(name,))), figure=name)
    assert (line["mean"], line["rule"]) == (pytest.approx(value), rule)


def test_default_shows_all_main_figures():
    expected = ["classifier.val.map"]
    expected += [f"cams.train.{rule}{metric}" for rule in ("", "oracle.") for metric in ("miou", "mfdr", "mfnr")]
    expected += [f"segmenter.val.{metric}" for metric in ("miou", "mfdr", "mfnr")]
    assert main_figures([record()]) == expected
    assert list(make_table([record()], Table())["figure"]) == expected


def test_protocol_columns():
    frame = make_table([record(seed=s) for s in (0, 1)], Table(values=("cams.train.oracle.miou", "segmenter.val.miou")))
    line = cell(frame, figure="cams.train.oracle.miou")
    assert line["split":].to_dict() == {
        "split": "train",
        "rule": "oracle",
        "threshold": "0.2;0.3",
        "image_labels": "yes",
        "walk": "",
        "crf": "none",
        "source": "",
        "scales": "0.5 1",
        "flip": "yes",
    }
    assert cell(frame, figure="segmenter.val.miou")["image_labels"] == "no"


def test_undefined_value_is_left_out():
    records = [record(seed=0, segmenter=0.95), record(seed=1, segmenter=0.6)]
    line = cell(make_table(records, Table(values=("segmenter.val.iou.cow",))), row="base")
    assert (line["mean"], line["n"]) == (pytest.approx(0.3), 1)


def test_experiment_without_a_stage_has_an_empty_cell():
    frame = make_table([record(), record("cams-only", segmenter=None)], Table(values=("segmenter.val.miou",)))
    assert cell(frame, row="cams-only")["n"] == 0
    assert "| cams-only | - | 0 |" in to_markdown(frame, Table(), "t")


def test_rows_and_columns_by_key():
    records = [record(f"x,{lr},{s}", lr=lr, scales=(s,), cams=lr + s / 100) for lr in (0.1, 0.2) for s in (1, 2)]
    table = Table(rows="classifier.lr", columns="cams.scales", values=("cams.train.miou",))
    frame = make_table(records, table)
    assert cell(frame, row="0.2", column="1")["mean"] == pytest.approx(0.21)
    text = to_markdown(frame, table, "t")
    assert "| CAMs train mIoU: classifier.lr \\ cams.scales | 1 | 2 | n |" in text
    assert "| 0.2 | 21.0 | 22.0 | 1 |" in text


def test_different_experiments_are_not_averaged():
    records = [record("a", lr=0.1, scales=(1,)), record("b", lr=0.1, scales=(2,))]
    with pytest.raises(UserError, match=r"classifier\.lr = 0\.1: the experiments a, b also differ in cams\.scales;"):
        make_table(records, Table(rows="classifier.lr"))


def test_the_same_experiment_under_two_names_counts_once():
    frame = make_table([record("a"), record("b"), record("b", seed=1)], Table(rows="classifier.lr", values=("cams.train.miou",)))
    assert cell(frame, row="0.1")["n"] == 2


def test_key_that_an_experiment_lacks():
    records = [record(), record("cams-only", segmenter=None)]
    assert list(make_table(records, Table(rows="segmenter.epochs", values=("cams.train.miou",)))["row"]) == ["3", "none"]


def test_choice_of_experiments():
    records = [record("a1"), record("a2"), record("b")]
    assert set(make_table(records, Table(experiments=("a*",)))["row"]) == {"a1", "a2"}
    with pytest.raises(UserError, match="no experiment is called 'a3'"):
        make_table(records, Table(experiments=("a3",)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (Table(values=("cams.train.mIou",)), "did you mean 'cams.train.miou'"),
        (Table(values=("segmenter.val.iou.cwo",)), "did you mean 'segmenter.val.iou.cow'"),
        (Table(values=("nonsense",)), "no figure is called 'nonsense'; valid: "),
        (Table(values=("",)), "no figure is called ''"),
        (Table(rows="classifier.lrr"), "did you mean 'classifier.lr'"),
        (Table(columns="classifier.lr"), "needs one figure"),
    ],
)
def test_wrong_table(table, message):
    with pytest.raises(UserError, match=message):
        make_table([record()], table)


def test_data_without_masks():
    bare = record()
    for subject in ("cams", "segmenter"):
        bare["evaluations"][subject]["figures"] = []
    assert list(make_table([bare], Table())["figure"]) == ["classifier.val.map"]
    line = cell(make_table([bare], Table(values=("cams.train.oracle.miou",))), row="base")
    assert line["n"] == 0
    del bare["evaluations"]["classifier"]
    assert "No figures" in to_markdown(make_table([bare], Table()), Table(), "t")


def test_what_a_stage_cost_is_no_percentage():
    records = [record(seed=seed) for seed in (0, 1)]
    for each, seconds in zip(records, (100, 140), strict=True):
        each["stages"] = {"classifier": {"seconds": seconds, "peak_memory_mb": 2048.0}, "data": {}}
    table = Table(values=["cost.classifier.seconds", "cost.classifier.memory_gb", "cams.train.miou"])
    seen = Published("base", "cost.classifier.seconds", "369", "Someone 2020", "file: line 2")
    frame = make_table(records, table, [seen])
    assert frame["mean"].tolist() == pytest.approx([120, 2, 0.4]) and frame["published"][0] == 369
    assert not [name for name in main_figures(records) if name.startswith("cost.")]
    text = to_markdown(frame, table, "costs")
    assert "Cost classifier time (s)" in text and "| 120.0 ± 28.3 (369) | 2.0 ± 0.0 | 40.0 ± 0.0 |" in text
    assert "- Cost, classifier: of the whole stage" in text


def test_write_table(tmp_path):
    paths = []
    for seed in (0, 1):
        paths.append(tmp_path / f"{seed}.json")
        paths[-1].write_text(json.dumps(record(seed=seed, cams=0.4 + seed / 100)))
    write_table(paths, Table(), "results", tmp_path / "tables")
    frame = pd.read_csv(tmp_path / "tables" / "results.csv", dtype={"threshold": str})
    assert tuple(frame.columns) == COLUMNS
    assert cell(frame, figure="cams.train.miou")["mean"] == pytest.approx(0.405)
    text = (tmp_path / "tables" / "results.md").read_text()
    assert "| experiment | mIoU | mFDR | mFNR | mIoU (oracle) | mFDR (oracle) | mFNR (oracle) | n |" in text
    assert "| base | 40.5 ± 0.7 | 20.0 ± 0.0 | 30.0 ± 0.0 | 45.5 ± 0.7 | 20.0 ± 0.0 | 30.0 ± 0.0 | 2 |" in text
    assert "CAMs, train: split train; threshold 0.3 (rule fixed); masked by image labels: yes; CRF: none; scales 0.5, 1, flip yes." in text
    assert "threshold 0.2 or 0.3 (rule oracle)" in text
    assert "chosen on the pixel masks" in text
    with pytest.raises(UserError, match=r"^tables\.results: values: no figure"):
        write_table(paths, Table(values=("cams.train.x",)), "results", tmp_path)


def test_damaged_record(tmp_path):
    path = tmp_path / "experiment.json"
    wrong = deepcopy(record())
    del wrong["evaluations"]
    path.write_text(json.dumps(wrong))
    with pytest.raises(UserError, match="missing evaluations"):
        write_table([path], Table(), "t", tmp_path)
