"""Tables of results: the records of finished experiments become a tidy CSV (fractions) and a readable Markdown table (percent).

A record is one experiment with one seed: `experiment.json` with its name, seed, configuration, stages and evaluations. A figure is
named `<subject>.<split>[.<rule>].<metric>[.<class>]`, such as `cams.train.oracle.miou`, `segmenter.val.miou`, `classifier.val.map`,
`segmenter.val.iou.cow`; without a rule it is the one whose threshold was not chosen on pixel masks. What a stage cost
is `cost.<stage>.seconds` (wall time) and `cost.<stage>.memory_gb` (peak, of the GPU if there was one, else of the process), no fractions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_core.config import Table
from wsss_core.errors import UserError, did_you_mean
from wsss_core.files import read_json, write_text
from wsss_core.report.differences import DIFFERENCES, paired_difference
from wsss_core.report.markdown import to_markdown
from wsss_core.report.names import METRICS, RULES, SUBJECTS
from wsss_core.report.published import COSTS, Published, find_published, read_published

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("name", "seed", "dataset", "values", "stages", "evaluations")
PROTOCOL = ("image_labels", "walk", "crf", "source", "scales", "flip")
HOW = ("split", "rule", "threshold", *PROTOCOL)
COLUMNS = ("row", "column", "figure", "mean", "std", "n", "published", "printed", "about", *HOW)
_MAIN = ("map", "miou", "mfdr", "mfnr", "boundary_f", "inter_class", "intra_class")
_NAMED = 6
"""Most keys that an error lists."""


@dataclass(frozen=True)
class Figure:
    """One number of one record (a fraction; None if undefined) and how it came about."""

    value: float | None
    split: str
    rule: str
    threshold: float | None
    image_labels: bool | None
    walk: str | None
    crf: str | None
    source: str | None
    scales: Any
    flip: bool | None


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read `experiment.json` files; raises `UserError` if one is missing, damaged or lacks a key."""
    records = []
    for path in paths:
        record = read_json(path)
        missing = [key for key in KEYS if not isinstance(record, dict) or key not in record]
        if missing:
            raise UserError(f"{path}: not the record of an experiment: missing {', '.join(missing)}")
        records.append(record)
    return records


def figures_of(record: dict[str, Any]) -> dict[str, Figure]:
    """Return all figures of a record by their names; those of the rule that is no oracle under two names, with and without it."""
    found: dict[str, Figure] = {}
    for name, stage in record["stages"].items():
        about: dict[str, Any] = {**dict.fromkeys(HOW), "split": name, "rule": "none"}
        memory = stage.get("peak_gpu_memory_mb") or stage.get("peak_memory_mb")
        for metric, value in (("seconds", stage.get("seconds")), ("memory_gb", memory and memory / 1024)):
            if value:
                found[f"cost.{name}.{metric}"] = Figure(value, **about)
    for subject, content in record["evaluations"].items():
        protocol = {key: content.get("protocol", {}).get(key) for key in PROTOCOL}
        for entry in content["figures"]:
            about = {**protocol, "split": content["split"], "rule": entry["rule"], "threshold": entry["threshold"]}
            start = f"{subject}.{content['split']}"
            for prefix in (f"{start}.{entry['rule']}", *([start] if entry["rule"] != "oracle" else [])):
                for metric in METRICS.keys() & entry.keys():
                    values = entry[metric]
                    named = {f".{name}": value for name, value in values.items()} if isinstance(values, dict) else {"": values}
                    found |= {f"{prefix}.{metric}{suffix}": Figure(value, **about) for suffix, value in named.items()}
    return found


def main_figures(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the main figures that any record has: mAP of the classifier, mIoU, mFDR, mFNR and, if asked for, boundary F of all else."""
    there = set().union(*(figures_of(record) for record in records))
    names = []
    for subject in SUBJECTS:
        splits = dict.fromkeys(r["evaluations"][subject]["split"] for r in records if subject in r["evaluations"])
        names += [f"{subject}.{split}{rule}.{m}" for split in splits for rule in ("", ".oracle") for m in _MAIN]
    return [name for name in names if name in there]


def make_table(records: Sequence[dict[str, Any]], table: Table, published: Sequence[Published] = ()) -> pd.DataFrame:
    """Average the figures of a table over seeds, and set the published ones beside them.

    Returns
    -------
    pandas.DataFrame
        Tidy, one line per row, column and figure: `row`, `column` (the value of the key `table.columns`; without one the figure's
        name), `figure`, `mean`, `std` (sample standard deviation over seeds, NaN for one), `n` (seeds), `published` (NaN if none),
        `printed` (its digits, percent) and `about` (its source), and how our figure came about. Fractions. A figure that an
        experiment lacks has n = 0; so have, after ours, published figures in cells that are not ours. With `table.compare` also, before
        `published`, `DIFFERENCES` from that row in the same column; none of the row itself, and none of costs: another seed says
        nothing of what else the machine did.

    Raises
    ------
    UserError
        For an unknown experiment, key, figure or row to compare with; and if one cell would average over experiments that differ in more than the seed.
    """
    import pandas as pd

    records = _select(records, table)
    names = list(table.values) or main_figures(records)
    if table.columns is not None:
        if not table.values:
            raise UserError("values: a table with a key as columns needs one figure, such as segmenter.val.miou")
        names = names[:1]
    figures = [figures_of(record) for record in records]
    for name in names:
        _check_name(name, records, figures, published)
    for each in published:
        if table.columns is None and _metric(each.column) not in METRICS:
            raise UserError(f"{each.place}: column: expected a figure such as cams.train.miou, got '{each.column}'")
    cells: dict[tuple[str, str | None], list[int]] = {}
    for i, cell in enumerate(cell_labels(records, table)):
        cells.setdefault(cell, []).append(i)
    lines = []
    by_seed: dict[tuple[str, str], dict[int, float]] = {}
    beside = {(each.row, each.column): each for each in published}
    for (row, column), members in cells.items():
        members = _one_per_seed(records, members, table, " and ".join(filter(None, (row, column))))
        for name in names:
            found = {records[i]["seed"]: figures[i][name] for i in members if name in figures[i] and figures[i][name].value is not None}
            place = (row, name if column is None else column)
            lines.append(_line(*place, name, list(found.values()), beside.pop(place, None)))
            by_seed[place] = {seed: figure.value for seed, figure in found.items() if figure.value is not None}
    lines += [_line(each.row, each.column, names[0] if table.columns else each.column, [], each) for each in beside.values()]
    if table.compare is None:
        return pd.DataFrame(lines, columns=list(COLUMNS))
    for line in lines:
        left_out = line["row"] == table.compare or _metric(line["figure"]) in COSTS
        own, reference = ({} if left_out else by_seed.get((row, line["column"]), {}) for row in (line["row"], table.compare))
        line |= paired_difference(own, reference)
    before = COLUMNS.index("published")
    return pd.DataFrame(lines, columns=[*COLUMNS[:before], *DIFFERENCES, *COLUMNS[before:]])


def cell_labels(records: Sequence[dict[str, Any]], table: Table) -> list[tuple[str, str | None]]:
    """Return row and column of each record, the column None without a key for it.

    Raises
    ------
    UserError
        For an unknown key, or if no row is called `table.compare`.
    """
    rows = _labels(records, table.rows)
    if table.compare is not None and table.compare not in rows:
        raise UserError(f"compare: no row is called '{table.compare}'{did_you_mean(table.compare, dict.fromkeys(rows))}")
    columns = _labels(records, table.columns) if table.columns else [None] * len(records)
    return list(zip(rows, columns, strict=True))


def write_table(paths: Iterable[Path], table: Table, name: str, out_dir: Path) -> None:
    """Write `<name>.csv` and `<name>.md` into `out_dir` from the records at `paths`; errors as `make_table`, with the table's name."""
    records = read_records(paths)
    published = read_published(find_published(table.published)) if table.published else []
    try:
        frame = make_table(records, table, published)
    except UserError as error:
        raise UserError(f"tables.{name}: {error}") from None
    write_text(out_dir / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    datasets = dict.fromkeys(record["dataset"] for record in records)
    write_text(out_dir / f"{name}.md", to_markdown(frame, table, name, ", ".join(datasets)))


def check_keys(specs: Sequence[dict[str, Any]], table: Table, name: str) -> None:
    """Raise the `UserError` that `write_table` would for unknown keys or an unknown row to compare with, from the specs of a plan alone."""
    try:
        cell_labels(specs, table)
    except UserError as error:
        raise UserError(f"tables.{name}: {error}") from None


def _select(records: Sequence[dict[str, Any]], table: Table) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(record["name"] for record in records))
    for pattern in table.experiments:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"experiments: no experiment is called '{pattern}'{did_you_mean(pattern, names)}")
    chosen = [r for r in records if not table.experiments or any(fnmatchcase(r["name"], pattern) for pattern in table.experiments)]
    if not chosen:
        raise UserError("no finished experiments")
    return chosen


def _metric(name: str) -> str:
    """The metric in a figure's name; empty if it is none."""
    parts = name.split(".")
    return parts[3] if len(parts) > 3 and parts[2] in RULES else parts[2] if len(parts) > 2 else ""


def _check_name(name: str, records: Sequence[dict[str, Any]], figures: Sequence[dict[str, Figure]], published: Sequence[Published]) -> None:
    """Accept a figure that any record has, that one would have if its data set had masks, or that is published."""
    valid = set().union(*figures, (each.column for each in published))
    parts = name.split(".")
    empty = {(subject, e["split"]) for r in records for subject, e in r["evaluations"].items() if not e["figures"]}
    if name not in valid and not (_metric(name) in METRICS and (parts[0], parts[1]) in empty):
        main = [n for n in valid if "." not in n.split(".", 2)[2]]
        near = did_you_mean(name, valid)
        raise UserError(f"values: no figure is called '{name}'{near if near.startswith('; did') else did_you_mean(name, main)}")


def _labels(records: Sequence[dict[str, Any]], key: str) -> list[str]:
    """Return what a key (`experiment`, `dataset` or a dotted configuration key) says in each record, as text."""
    if key in ("experiment", "dataset"):
        return [record["name" if key == "experiment" else key] for record in records]
    flat = [_flatten(record["values"]) for record in records]
    valid = set().union(*flat)
    if key not in valid:
        raise UserError(f"rows or columns: no configuration key is called '{key}'{did_you_mean(key, valid)}")
    return [_text(values.get(key)) for values in flat]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _one_per_seed(records: Sequence[dict[str, Any]], members: list[int], table: Table, cell: str) -> list[int]:
    """Return one record per seed; raises `UserError` if they differ in more than the seed (and the name)."""
    configs = []
    for i in members:
        config = {**_flatten(records[i]["values"]), "dataset": records[i]["dataset"]}
        configs.append({key: json.dumps(value, sort_keys=True) for key, value in config.items() if key != "seeds"})
    keys = dict.fromkeys(key for config in configs for key in config)
    differing = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    if differing:
        more = f" and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        keyed = table.rows if table.columns is None else f"{table.rows} and {table.columns}"
        raise UserError(
            f"{keyed} = {cell}: the experiments {', '.join(dict.fromkeys(records[i]['name'] for i in members))} also differ in"
            f" {', '.join(differing[:_NAMED])}{more}; they are not averaged: choose by `experiments`, or add a key as rows or columns"
        )
    return list({records[i]["seed"]: i for i in reversed(members)}.values())[::-1]


def _line(row: str, column: str, name: str, found: Sequence[Figure], published: Published | None) -> dict[str, Any]:
    values = np.array([figure.value for figure in found], np.float64)
    return {
        "row": row,
        "column": column,
        "figure": name,
        "mean": float(values.mean()) if len(values) else np.nan,
        "std": float(values.std(ddof=1)) if len(values) > 1 else np.nan,
        "n": len(values),
        "published": np.nan if published is None else published.number if _metric(name) in COSTS else published.number / 100,
        "printed": published.printed if published else "",
        "about": published.about if published else "",
        **{key: ";".join(dict.fromkeys(_text(asdict(figure)[key], "") for figure in found)) for key in HOW},
    }


def _text(value: Any, none: str = "none") -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(_text(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return none if value is None else f"{value:g}" if isinstance(value, float) else str(value)
