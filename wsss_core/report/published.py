"""Figures as papers print them, read from a CSV file to stand beside ours in tables. They are never averaged or compared by code."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from wsss_core.errors import UserError

FIELDS = ("row", "column", "value", "about")
PROJECT = Path(__file__).resolve().parents[2]
COSTS = {"seconds": "time (s)", "memory_gb": "peak memory (GB)"}
"""Figures that are no percentages."""
_PRINTED = re.compile(r"\d{1,3}(\.\d+)?")


@dataclass(frozen=True)
class Published:
    """One printed figure.

    Attributes
    ----------
    row, column
        Labels of the cell, as the table's own print.
    printed
        Percent (costs: seconds, GB), with the digits of the source: 54.10 stays 54.10.
    about
        Source and protocol.
    place
        File and line, for errors.
    """

    row: str
    column: str
    printed: str
    about: str
    place: str

    @property
    def number(self) -> float:
        """The value as printed: in percent, or of a cost in its unit."""
        return float(self.printed)


def find_published(path: str, project: Path = PROJECT) -> Path:
    """Return where the file is: in the working directory, else in the project, so that `workflow/published/...` is found from anywhere."""
    places = [Path(path).expanduser(), project / path]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"published: {path}: no such file, neither here nor in {project}")


def read_published(path: Path) -> list[Published]:
    """Read a file of published figures, in its order.

    Raises
    ------
    UserError
        Naming the file and the line, for a missing column or value, a value that is no number in percent, two values of one cell.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [field for field in FIELDS if field not in (reader.fieldnames or ())]
            if missing:
                raise UserError(f"{path}: line 1: missing column {', '.join(missing)}; expected {','.join(FIELDS)}")
            lines = [(reader.line_num, line) for line in reader]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    found: dict[tuple[str, str], Published] = {}
    for number, line in lines:
        place = f"{path}: line {number}"
        if None in line:
            raise UserError(f"{place}: too many values; a text with a comma stands in quotes")
        row, column, value, about = ((line[field] or "").strip() for field in FIELDS)
        empty = [field for field, text in zip(FIELDS, (row, column, value, about), strict=True) if not text]
        if empty:
            raise UserError(f"{place}: no {' and no '.join(empty)}")
        if not _PRINTED.fullmatch(value) or (float(value) > 100 and column.rpartition(".")[2] not in COSTS):
            raise UserError(f"{place}: value: expected a number in percent, as printed, got '{value}'")
        if (row, column) in found:
            raise UserError(f"{place}: row '{row}', column '{column}': this cell has a value already")
        found[row, column] = Published(row, column, value, about, place)
    return list(found.values())
