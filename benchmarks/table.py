"""Measured hot spots as one table, as JSON and as CSV, and what they mean for the exit code."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Row

_HEADS = ("hot spot", "stage", "published form", "ours", "reference time", "our time", "ratio", "hold at least", "known best", "result")
_NUMBERS = range(4, 9)


def exit_code(rows: Sequence[Row], check: bool) -> int:
    """1 if forms disagree, or if ratios are checked and one is below its target; else 0."""
    failing = {"WRONG", "below"} if check else {"WRONG"}
    return int(any(row.result in failing for row in rows))


def to_text(rows: Sequence[Row], conditions: str) -> str:
    """Return the table as Markdown, then one line for each thing that has to be known to read it."""
    lines = [_HEADS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * (width - 1) + ":" if i in _NUMBERS else "-" * width for i, width in enumerate(widths)]
    aligned = [
        [cell.rjust(w) if i in _NUMBERS else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))] for line in lines
    ]
    table = ["| " + " | ".join(line) + " |" for line in [aligned[0], rule, *aligned[1:]]]
    return "\n".join([*table, "", conditions, *(note for row in rows for note in _notes(row))])


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain values: seconds per image, memory in bytes, None for what was not measured."""
    return [
        {
            "name": row.spot.name,
            "stage": row.spot.stage,
            "published": _published(row),
            "ours": row.spot.ours,
            "reference_seconds": _or_none(row.reference_seconds),
            "our_seconds": _or_none(row.our_seconds),
            "ratio": _or_none(row.ratio),
            "target": row.spot.target,
            "known_best": row.spot.best,
            "result": row.result,
            "agreement": row.spot.agreement,
            "difference": _or_none(row.difference),
            "tolerance": row.tolerance,
            "reference_bytes": row.memory[0] if row.memory else None,
            "our_bytes": row.memory[1] if row.memory else None,
        }
        for row in rows
    ]


def write_json(path: Path, rows: Sequence[Row], conditions: str) -> None:
    """Write the rows with the single samples, seconds per image of each timed function."""
    lines = [{**record, "samples": row.samples} for record, row in zip(records(rows), rows, strict=True)]
    path.write_text(json.dumps({"conditions": conditions, "hot_spots": lines}, indent=2) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line per row; at least one row."""
    lines = records(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.spot.name,
        row.spot.stage,
        _published(row),
        row.spot.ours,
        duration(row.reference_seconds),
        duration(row.our_seconds),
        _times(row.ratio),
        _times(row.spot.target),
        _times(row.spot.best),
        row.result,
    )


def _published(row: Row) -> str:
    added = "; ".join(part for part in (row.reference_name and f"faster by {row.reference_name}", row.note) if part)
    return f"{row.spot.published} ({added})" if added else row.spot.published


def _notes(row: Row) -> list[str]:
    measured = f"{row.spot.agreement} {row.checked}".strip()
    compared = f"{measured}: {row.difference:.1g}, allowed {row.tolerance:.1g}"
    if not row.agrees:
        return [f"{row.spot.name}: WRONG, not timed: {compared}"]
    lines = [f"{row.spot.name}: {compared}"]
    if row.memory:
        published, ours = (size / 1e6 for size in row.memory)
        lines[0] += f"; peak memory {published:.0f} -> {ours:.0f} MB"
    return lines


def duration(seconds: float) -> str:
    """Return a time with three digits, in the unit that suits it; `-` for NaN."""
    if math.isnan(seconds):
        return "-"
    unit, factor = next(((u, f) for u, f in (("s", 1), ("ms", 1e3)) if seconds * f >= 1), ("us", 1e6))
    return f"{_three_digits(seconds * factor)} {unit}"


def _times(ratio: float) -> str:
    return "-" if math.isnan(ratio) else f"{_three_digits(ratio)}x"


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value else "0"


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
