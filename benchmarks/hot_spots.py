"""The list of hot spots, in the order of the pipeline. A new one: an entry in the `HOT_SPOTS` of its topic's module."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from benchmarks import affinity, beacon, contrast, crf, evaluate, patches, store, transport, walk
from benchmarks.harness import HotSpot

HOT_SPOTS: list[HotSpot] = [
    *contrast.HOT_SPOTS,
    *patches.HOT_SPOTS,
    *transport.HOT_SPOTS,
    *store.HOT_SPOTS,
    *crf.HOT_SPOTS,
    *affinity.HOT_SPOTS,
    *walk.HOT_SPOTS,
    *beacon.HOT_SPOTS,
    *evaluate.HOT_SPOTS,
]


def choose(patterns: Sequence[str], spots: Sequence[HotSpot] = HOT_SPOTS) -> list[HotSpot]:
    """Return the hot spots whose names match a pattern (such as `walk-*`), or the default ones if there is no pattern.

    Raises ValueError for a pattern that matches none.
    """
    if not patterns:
        return [spot for spot in spots if spot.default]
    for pattern in patterns:
        if not any(fnmatchcase(spot.name, pattern) for spot in spots):
            raise ValueError(f"no hot spot '{pattern}'; there are: {', '.join(spot.name for spot in spots)}")
    return [spot for spot in spots if any(fnmatchcase(spot.name, pattern) for pattern in patterns)]
