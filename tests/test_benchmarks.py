"""The benchmarks without their times: both forms of every hot spot agree, and what is made of measured rows."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import command, harness, table
from benchmarks.harness import Forms, HotSpot, Row, Setup, disagreement, measure
from benchmarks.hot_spots import HOT_SPOTS, choose
from benchmarks.memory import peak_bytes


@pytest.mark.parametrize("spot", HOT_SPOTS, ids=lambda spot: spot.name)
def test_both_forms_agree(spot: HotSpot, tmp_path: Path) -> None:
    forms = spot.make(Setup(tmp_path, tiny=True))
    assert disagreement(forms) <= forms.tolerance


def test_names_are_unique_and_targets_within_what_is_known() -> None:
    assert len({spot.name for spot in HOT_SPOTS}) == len(HOT_SPOTS)
    assert all(0 < spot.target <= spot.best for spot in HOT_SPOTS)


def test_choice_of_hot_spots() -> None:
    names = [spot.name for spot in choose(["walk-*", "confusion"])]
    assert names == ["walk-stride-8", "walk-stride-4", "walk-sparse", "confusion"]
    assert all(spot.default for spot in choose([]))
    with pytest.raises(ValueError, match="no hot spot 'wlak'; there are: foreground-contrast, image-contrast"):
        choose(["confusion", "wlak"])


def made(reference: object = 1.0, ours: float = 1.0, **fields: object) -> HotSpot:
    """A hot spot whose forms return numbers, and whose difference is that of the numbers."""
    functions = reference if isinstance(reference, dict) else {"only": lambda: reference}
    forms = Forms(functions, lambda: ours, lambda a, b: abs(a - b), 0.5, **fields)  # type: ignore[arg-type]
    return HotSpot("made", "a stage", "the published form", "ours", 10, 20, "difference", lambda setup: forms)


def row(reference: float, ours: float, difference: float = 0.0) -> Row:
    return Row(made(), difference, 0.5, reference_seconds=reference, our_seconds=ours)


FAST, SLOW, WRONG = row(1.0, 0.1), row(1.0, 0.11), row(math.nan, math.nan, 0.6)


@pytest.mark.parametrize(
    ("rows", "checked", "unchecked"),
    [([FAST], 0, 0), ([FAST, SLOW], 1, 0), ([FAST, WRONG], 1, 1), ([row(1.0, 0.01, math.nan)], 1, 1), ([], 0, 0)],
)
def test_exit_code(rows: list[Row], checked: int, unchecked: int) -> None:
    assert table.exit_code(rows, check=True) == checked
    assert table.exit_code(rows, check=False) == unchecked


def test_results() -> None:
    assert [each.result for each in (FAST, SLOW, WRONG)] == ["ok", "below", "WRONG"]


@pytest.fixture
def faked_times(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Samples that stand for measured ones, by function."""
    samples: dict[str, list[float]] = {"only": [8.0, 6.0, 4.0], "": [1.0, 2.0, 3.0]}
    monkeypatch.setattr(harness, "_sample", lambda functions, first, repetitions, clock: {name: samples[name] for name in functions})
    return samples


def test_medians_extrapolation_and_time_per_image(faked_times: dict[str, list[float]], tmp_path: Path) -> None:
    measured = measure(made(times=8, items=4, memory=lambda: (300, 10)), Setup(tmp_path), 3)
    assert (measured.reference_seconds, measured.our_seconds, measured.ratio) == (12.0, 0.5, 24.0)
    assert measured.samples == {"only": [2.0, 1.5, 1.0], "ours": [0.25, 0.5, 0.75]}
    assert measured.memory == (300, 10)


def test_the_fastest_opponent_counts(faked_times: dict[str, list[float]], tmp_path: Path) -> None:
    faked_times.update(slow=[9.0], quick=[5.0])
    measured = measure(made({"slow": lambda: 1.0, "quick": lambda: 1.0}), Setup(tmp_path), 3)
    assert (measured.reference_name, measured.reference_seconds) == ("quick", 5.0)


@pytest.mark.parametrize("ours", [1.6, math.nan])
def test_wrong_results_are_not_timed(ours: float, tmp_path: Path) -> None:
    measured = measure(made(ours=ours), Setup(tmp_path), 3)
    assert measured.result == "WRONG"
    assert math.isnan(measured.ratio)


def test_every_opponent_is_checked(tmp_path: Path) -> None:
    assert measure(made({"right": lambda: 1.0, "wrong": lambda: 2.0}), Setup(tmp_path), 1).result == "WRONG"


def test_a_part_that_is_timed_alone_is_checked_otherwise(faked_times: dict[str, list[float]], tmp_path: Path) -> None:
    assert measure(made(reference=99.0, expected=lambda: 1.2), Setup(tmp_path), 3).difference == pytest.approx(0.2)
    assert measure(made(reference=99.0, expected=lambda: 2.0), Setup(tmp_path), 3).result == "WRONG"


@pytest.mark.parametrize(("first", "calls", "taken"), [(0.001, 7, 7), (3.0, 3, 3), (30.0, 0, 1)])
def test_long_functions_are_run_less_often(monkeypatch: pytest.MonkeyPatch, first: float, calls: int, taken: int) -> None:
    timed = []
    monkeypatch.setattr(harness.timeit, "timeit", lambda function, number, timer: timed.append(number) or 1.0)
    samples = harness._sample({"it": lambda: None}, {"it": first}, 7, lambda: 0.0)
    assert len(samples["it"]) == taken
    assert len(timed) - (first < 2) == calls  # one more call tells how many make a sample


def test_the_table() -> None:
    noted = dataclasses.replace(
        FAST, note="extrapolated: 8 x one squaring", reference_name="A", memory=(304_000_000, 11_000_000), checked="from B"
    )
    lines = table.to_text([noted, SLOW, WRONG], "One thread.").splitlines()
    heads, rule, *cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert heads[:4] == ["hot spot", "stage", "published form", "ours"]
    assert {len(line) for line in lines[:5]} == {len(lines[0])}
    assert set("".join(rule)) == {"-", ":"}
    assert cells[0][2:] == [
        "the published form (faster by A; extrapolated: 8 x one squaring)",
        *("ours", "1.00 s", "100 ms", "10.0x", "10.0x", "20.0x", "ok"),
    ]
    assert [line[-1] for line in cells] == ["ok", "below", "WRONG"]
    assert cells[2][4:7] == ["-", "-", "-"]
    assert lines[6:] == [
        "One thread.",
        "made: difference from B: 0, allowed 0.5; peak memory 304 -> 11 MB",
        "made: difference: 0, allowed 0.5",
        "made: WRONG, not timed: difference: 0.6, allowed 0.5",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(365, "365 s"), (0.0523, "52.3 ms"), (17.04e-6, "17.0 us"), (0.4, "400 ms"), (math.nan, "-")]
)
def test_durations(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text


def test_json_and_csv(tmp_path: Path) -> None:
    table.write_json(tmp_path / "t.json", [dataclasses.replace(FAST, samples={"ours": [0.1]}), WRONG], "One thread.")
    table.write_csv(tmp_path / "t.csv", [FAST, WRONG])
    written = json.loads((tmp_path / "t.json").read_text())
    assert written["conditions"] == "One thread."
    assert [line["ratio"] for line in written["hot_spots"]] == [10.0, None]
    assert written["hot_spots"][0]["samples"] == {"ours": [0.1]}
    with (tmp_path / "t.csv").open(newline="") as file:
        assert [(line["name"], line["ratio"], line["result"]) for line in csv.DictReader(file)] == [
            ("made", "10.0", "ok"),
            ("made", "", "WRONG"),
        ]


@pytest.mark.parametrize(("ours", "arguments", "code"), [(0.1, [], 0), (0.2, [], 1), (0.2, ["--no-check"], 0)])
def test_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, ours: float, arguments: list[str], code: int
) -> None:
    asked = []
    monkeypatch.setattr(command, "choose", lambda names: [made()] * 2)
    monkeypatch.setattr(command, "measure", lambda spot, setup, repetitions: asked.append((setup.full, repetitions)) or row(1.0, ours))
    file = tmp_path / "t.json"
    assert command.main(["--full", "--repetitions", "3", "--json", str(file), *arguments]) == code
    assert asked == [(True, 3)] * 2
    assert "| made " in capsys.readouterr().out
    assert len(json.loads(file.read_text())["hot_spots"]) == 2


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["wlak"], ["--repetitions", "0"]):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
    assert "no hot spot 'wlak'" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [spot.name for spot in HOT_SPOTS]


def test_peak_memory_counts_what_lives_at_once() -> None:
    kept = torch.zeros(1000, requires_grad=True)

    def compute() -> None:
        first = kept.detach()[:500] + 1  # 2000 bytes; the view is no new memory
        del first
        squares = (kept * kept).exp()  # 4000 + 4000 bytes; both are kept for the backward pass or by name
        squares.sum().backward()

    once, again = peak_bytes(compute), peak_bytes(lambda: [torch.zeros(250) for _ in range(3)] and None)
    assert 8000 < once < 8000 + 4 * 4000
    assert again == 3000
