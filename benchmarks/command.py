"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch

from benchmarks import table
from benchmarks.harness import Row, Setup, measure
from benchmarks.hot_spots import HOT_SPOTS, choose


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and return the exit code: 1 below a target or for wrong results, 2 for wrong arguments."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        for spot in HOT_SPOTS:
            print(f"{spot.name:16} {spot.stage}{'' if spot.default else ' (only when named)'}")
        return 0
    try:
        spots = choose(options.names)
    except ValueError as error:
        parser.error(str(error))
    rows: list[Row] = []
    for spot in spots:
        print(f"{spot.name} ...", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(spot, Setup(Path(folder), full=options.full), options.repetitions))
    stated = conditions(options.repetitions)
    print(table.to_text(rows, stated))
    if options.json:
        table.write_json(options.json, rows, stated)
    if options.csv:
        table.write_csv(options.csv, rows)
    return table.exit_code(rows, options.check)


def conditions(repetitions: int) -> str:
    """Return what the times were taken under."""
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"Processor time, medians of {repetitions} runs by turns in one process (at most 3 over 2 s, 1 over 20 s), "
        f"{torch.get_num_threads()} thread, {platform.machine()}, {os.cpu_count()} cores{load}, "
        f"Python {platform.python_version()}, numpy {numpy.__version__}, "
        f"torch {torch.__version__}. ratio = published / ours."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the hot spots of the pipeline against the forms that published code gives them.",
        epilog="Exit code 1: a ratio is below its target, or the two forms disagree.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="hot spots, also patterns such as 'walk-*'; without: all but those --list marks"
    )
    parser.add_argument("--list", action="store_true", help="list the hot spots and stop")
    parser.add_argument("--repetitions", type=_positive, default=7, metavar="N", help="timed runs of each form (default 7)")
    parser.add_argument(
        "--full", action="store_true", help="run published forms as a whole, also the walk that takes minutes, instead of extrapolating"
    )
    parser.add_argument("--no-check", dest="check", action="store_false", help="exit 0 although a ratio is below its target")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, single samples included")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one line per hot spot")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number
