"""The readable form of a table: percent with one decimal, below it how each group of figures came about, and differences from one row if asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from wsss_core.config import Table
from wsss_core.report.differences import CONFIDENCE, DIFFERENCES, verdict
from wsss_core.report.names import METRICS, RULES, SUBJECTS
from wsss_core.report.published import COSTS

if TYPE_CHECKING:
    import pandas as pd

_CELL = ("figure", "mean", "std", "n", "printed")
WIDEST = 8
"""Most figures side by side; a wider table falls apart into one per subject and split."""
PUBLISHED = "- In parentheses: as published, not measured here. Data, weights and budget of ours may be different. Sources:"
ORACLE = "its threshold was chosen on the pixel masks of this very split, which no weakly supervised method may see"


def to_markdown(frame: pd.DataFrame, table: Table, name: str, dataset: str = "") -> str:
    """Return a tidy table (see `tables.make_table`) as Markdown."""
    parts = [f"# {name}"]
    if frame.empty:
        return f"# {name}\n\nNo figures: the data set has no masks and no classifier was evaluated.\n"
    seeds = "mean ± sample standard deviation over seeds" if (frame["n"] > 1).any() else "one seed, hence without deviation"
    beside = " In parentheses: published, on the data that the notes name." if (frame["printed"] != "").any() else ""
    measured = f"Measured on the data set `{dataset}`. " if dataset else ""
    but = " (costs in their units)" if frame["figure"].str.startswith("cost.").any() else ""
    parts.append(f"{measured}Percent{but}; {seeds}. n: number of seeds. -: no such figure.{beside}")
    sections = {"": frame}
    if table.columns is None and frame["column"].nunique() > WIDEST:
        of = [_group(figure).removesuffix(".oracle") for figure in frame["figure"]]
        sections = {_title(section): frame[[each == section for each in of]] for section in dict.fromkeys(of)}
    for title, part in sections.items():
        parts += [f"## {title}"] if title else []
        parts += [_grid(part, table, "n", _CELL, _cell, long=not title), _notes(part)]
    if table.compare is not None:
        parts += [f"## Differences from `{table.compare}`", *_differences(sections, table)]
    return "\n\n".join(parts) + "\n"


def _differences(sections: dict[str, pd.DataFrame], table: Table) -> list[str]:
    parts = []
    for title, section in sections.items():
        part = section[section["difference_n"] > 0]
        if not part.empty:
            parts += [f"### {title}"] if title else []
            parts.append(_grid(part, table, "difference_n", DIFFERENCES, _difference, long=not title))
    if not parts:
        return [f"None: no other row has a figure and a seed in common with `{table.compare}`."]
    return [
        *parts,
        f"Points of percent: row minus `{table.compare}`, mean over the n seeds that both have [{CONFIDENCE:.0%} confidence interval, Student's t over the n"
        " differences, each figure by itself]; undecided: the interval holds 0, or there is one seed; same: equal for every seed.",
    ]


def _grid(frame: pd.DataFrame, table: Table, n: str, of_cell: Sequence[str], write: Callable[..., str], *, long: bool) -> str:
    """Lay out a table whose cells are what `write` makes of the columns `of_cell`, and its last column the range of the column `n`."""
    places = zip(frame["row"], frame["column"], strict=True)
    cells = {place: write(*line) for place, *line in zip(places, *(frame[c] for c in of_cell), strict=True)}
    columns = list(dict.fromkeys(frame["column"]))
    if table.columns is None:
        corner, heads = table.rows, [_figure_title(column, long) for column in columns]
    else:
        corner = f"{_figure_title(frame['figure'].iloc[0], True)}: {table.rows} \\ {table.columns}"
        heads = columns
    lines = [[corner, *heads, "n"], ["---", *["---:"] * (len(heads) + 1)]]
    for row in dict.fromkeys(frame["row"]):
        seeds = sorted({int(value) for value in frame.loc[frame["row"] == row, n] if value} or {0})
        span = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]}-{seeds[-1]}"
        lines.append([row, *(cells.get((row, column), "-") for column in columns), span])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _cell(figure: str, mean: float, std: float, n: int, printed: str) -> str:
    unit = 1 if figure.rpartition(".")[2] in COSTS else 100  # costs are no fractions
    ours = f"{unit * mean:.1f}" + ("" if math.isnan(std) else f" ± {unit * std:.1f}") if n else ""
    return " ".join(filter(None, (ours, f"({printed})" if printed else ""))) or "-"


def _difference(difference: float, low: float, high: float, n: int) -> str:
    interval = f"[{100 * low:.1f}, {100 * high:.1f}]" if n > 1 else ""
    return " ".join(filter(None, (f"{100 * difference:+.1f}", interval, verdict(difference, low, high))))


def _notes(frame: pd.DataFrame) -> str:
    lines = []
    for group in dict.fromkeys(map(_group, frame["figure"])):
        part = frame[[_group(figure) == group for figure in frame["figure"]]]
        none = "no figures of ours" if (part["printed"] != "").any() else "no masks to compare with"
        part = part[part["n"] > 0]
        if part.empty:
            lines.append(f"- {_title(group)}: {none}.")
            continue
        if group.startswith("cost."):
            lines.append(
                f"- {_title(group)}: of the whole stage, reading and writing included, as its manifest has it; memory of the GPU where one was used, else of the process."
            )
            continue
        keys = ("split", "rule", "threshold", "image_labels", "walk", "crf", "source", "scales", "flip")
        said = {key: _distinct(part[key]) for key in keys}
        facts = [f"split {said['split']}"]
        if not group.startswith(("classifier.", "patches.")):
            facts.append(f"threshold {said['threshold'] or 'none'} (rule {said['rule']})")
            facts.append(f"masked by image labels: {said['image_labels'] or 'not recorded'}")
            facts += [f"walk: {said['walk']}"] if said["walk"] not in ("", "none") else []
            facts.append(f"CRF: {said['crf'] or 'not recorded'}")
            facts += [f"predictions of: {said['source']}"] if said["source"] else []
        facts.append(f"scales {said['scales'] or 'not recorded'}, flip {said['flip'] or 'not recorded'}")
        oracle = f" Oracle: {ORACLE}." if group.endswith(".oracle") else ""
        lines.append(f"- {_title(group)}: {'; '.join(facts)}.{oracle}")
    sources = list(dict.fromkeys(about for about in frame["about"] if about))
    return "\n".join(lines + [PUBLISHED] * bool(sources) + [f"  - {about}" for about in sources])


def _distinct(values: pd.Series) -> str:
    """Join what the lines of a group say (seeds of one line are joined by `;` already); many numbers become their range."""
    said = list(dict.fromkeys(part for value in values for part in str(value).split(";") if part))
    numbers = sorted(float(part) for part in said if part.replace(".", "", 1).isdigit())
    if len(said) > 2 and len(numbers) == len(said):
        return f"{numbers[0]:g} to {numbers[-1]:g}"
    return " or ".join(part.replace(" ", ", ") for part in said)


def _group(figure: str) -> str:
    """`cams.train.oracle.miou` belongs to `cams.train.oracle`; other rules to `cams.train`."""
    subject, split, rule = figure.split(".")[:3]
    return f"{subject}.{split}.{rule}" if rule == "oracle" else f"{subject}.{split}"


def _title(group: str) -> str:
    subject, split, *oracle = group.split(".")
    return f"{_subject_title(subject)}, {split}{' (oracle)' if oracle else ''}"


def _figure_title(figure: str, long: bool) -> str:
    subject, split, *rest = figure.split(".")
    oracle = rest[0] == "oracle"
    rest = rest[1:] if rest[0] in RULES else rest
    title = " ".join([METRICS.get(rest[0], rest[0]), ".".join(rest[1:])]).strip()
    where = f"{_subject_title(subject)} {split} " if long else ""
    return f"{where}{title}{' (oracle)' if oracle else ''}"


def _subject_title(subject: str) -> str:
    name, _, epoch = subject.partition("-epoch")
    return f"{SUBJECTS.get(name, name)}{f' after epoch {epoch}' if epoch else ''}"
