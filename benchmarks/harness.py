"""What a hot spot is and how it is measured: both forms in one process, checked against each other, then timed turn and turn about."""

from __future__ import annotations

import math
import statistics
import time
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

_SHORTEST = 0.1  # seconds a sample lasts at least; quicker functions are called several times per sample
_LONG, _VERY_LONG = 2.0, 20.0
_SAMPLES_OF_LONG = 3


@dataclass(frozen=True)
class Setup:
    """What a hot spot's inputs are made for.

    Attributes
    ----------
    folder
        An empty directory for files, removed afterwards.
    tiny
        As small as still makes sense: for the tests, which compare results and measure nothing.
    full
        Run the published form as a whole, also where it takes minutes.
    """

    folder: Path
    tiny: bool = False
    full: bool = False


@dataclass(frozen=True)
class Forms:
    """Both forms of one computation, as functions without arguments.

    Attributes
    ----------
    reference
        Name to function. Of several the fastest counts.
    ours
        The package's own form.
    difference
        How far two results are apart, from a result of the reference and one of ours.
    tolerance
        The greatest difference that counts as agreement.
    expected
        The reference's result, where the timed function is but a part of the reference. None: what it returns.
    checked
        With `expected`: against what our result is checked.
    times
        How many calls of the timed function make up the reference (an extrapolation: say so in `note`).
    items
        Images that one call of either form handles; times are per image.
    note
        What has to be known to read the reference time.
    wall
        Time by the wall clock, as forms of several processes need; otherwise by the processor time of this process, which
        others on the machine disturb less.
    memory
        Peak memory of the reference and of ours in bytes, a second figure beside the ratio.
    """

    reference: Mapping[str, Callable[[], Any]]
    ours: Callable[[], Any]
    difference: Callable[[Any, Any], float]
    tolerance: float
    expected: Callable[[], Any] | None = None
    checked: str = ""
    times: int = 1
    items: int = 1
    note: str = ""
    wall: bool = False
    memory: Callable[[], tuple[int, int]] | None = None


@dataclass(frozen=True)
class HotSpot:
    """One line of the table.

    Attributes
    ----------
    name
        Unique; what one types to choose it.
    stage
        The stage and the sizes.
    published, ours
        Both forms in a few words.
    target
        The ratio to hold at least.
    best
        The greatest ratio known.
    agreement
        What `Forms.difference` measures.
    make
        Make the inputs and return both forms.
    default
        Whether it runs when no names are given.
    """

    name: str
    stage: str
    published: str
    ours: str
    target: float
    best: float
    agreement: str
    make: Callable[[Setup], Forms]
    default: bool = True


@dataclass(frozen=True)
class Row:
    """A measured hot spot. Seconds are medians per image; NaN if the forms disagree, for then nothing is timed."""

    spot: HotSpot
    difference: float
    tolerance: float
    reference_name: str = ""
    note: str = ""
    checked: str = ""
    reference_seconds: float = math.nan
    our_seconds: float = math.nan
    samples: dict[str, list[float]] = field(default_factory=dict)
    memory: tuple[int, int] | None = None

    @property
    def ratio(self) -> float:
        """Reference time over our time."""
        return self.reference_seconds / self.our_seconds

    @property
    def agrees(self) -> bool:
        """Whether both forms gave the same; a NaN difference is none."""
        return self.difference <= self.tolerance

    @property
    def result(self) -> str:
        """`ok`, `below` (the target) or `WRONG` (results differ)."""
        if not self.agrees:
            return "WRONG"
        return "ok" if self.ratio >= self.spot.target else "below"


def disagreement(forms: Forms) -> float:
    """Return the greatest difference between our result and that of each reference."""
    return _greatest_difference(forms, {name: function() for name, function in forms.reference.items()}, forms.ours())


def measure(spot: HotSpot, setup: Setup, repetitions: int) -> Row:
    """Check that both forms agree, then time them by turns and return medians.

    A function that takes more than 2 s is run at most 3 times, one that takes more than 20 s once, which is the run whose
    result was checked. Otherwise runs before the timed ones warm caches, and quick functions are repeated within a sample.
    """
    forms = spot.make(setup)
    clock = time.perf_counter if forms.wall else time.process_time
    functions = {**forms.reference, "": forms.ours}
    results, first = {}, {}
    for name, function in functions.items():
        begin = clock()
        results[name] = function()
        first[name] = clock() - begin
    ours = results.pop("")
    row = Row(spot, _greatest_difference(forms, results, ours), forms.tolerance, note=forms.note, checked=forms.checked)
    del results, ours
    if not row.agrees:
        return row
    samples = _sample(functions, first, repetitions, clock)
    medians = {name: statistics.median(values) for name, values in samples.items()}
    fastest = min(forms.reference, key=medians.__getitem__)
    return replace(
        row,
        reference_name=fastest if len(forms.reference) > 1 else "",
        reference_seconds=medians[fastest] * forms.times / forms.items,
        our_seconds=medians[""] / forms.items,
        samples={name or "ours": [value / forms.items for value in values] for name, values in samples.items()},
        memory=forms.memory() if forms.memory else None,
    )


def _greatest_difference(forms: Forms, results: Mapping[str, Any], ours: Any) -> float:
    if forms.expected is not None:
        return float(forms.difference(forms.expected(), ours))
    differences = [float(forms.difference(result, ours)) for result in results.values()]
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _sample(
    functions: Mapping[str, Callable[[], Any]], first: Mapping[str, float], repetitions: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time every function `repetitions` times by turns; `first` holds the seconds of an earlier call of each."""
    samples: dict[str, list[float]] = {name: [] for name in functions}
    calls, wanted = {}, {}
    for name, function in functions.items():
        calls[name], wanted[name] = 1, repetitions
        if first[name] > _VERY_LONG:
            samples[name], wanted[name] = [first[name]], 0
        elif first[name] > _LONG:
            wanted[name] = min(repetitions, _SAMPLES_OF_LONG)
        else:
            calls[name] = max(1, math.ceil(_SHORTEST / max(timeit.timeit(function, number=1, timer=clock), 1e-9)))
    for turn in range(repetitions):
        for name, function in functions.items():
            if turn < wanted[name]:
                samples[name].append(timeit.timeit(function, timer=clock, number=calls[name]) / calls[name])
    return samples
