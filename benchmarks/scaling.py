"""How the random walk's time and memory grow with the image: `python -m benchmarks.scaling`."""

from __future__ import annotations

import resource
import time

import torch

from wsss_core.refine.random_walk import walk_boundary

GRIDS = ((94, 125), (133, 177), (188, 250), (376, 500))
"""A photo of 500 x 375 pixels at stride 4, and 2, 4 and 16 times as many cells."""
CLASSES, STEPS, REPETITIONS = 3, 256, 7


def main() -> None:
    """Print a line per size: cells, the fastest of a few runs, time per cell, and the peak memory above that before the first walk."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    walk_boundary(torch.rand(CLASSES, 8, 8), torch.rand(8, 8), steps=STEPS)  # loads what there is to load
    before = _peak_mb()
    print("| grid | cells | times 94x125 | time | time per cell | peak memory above idle |\n| --- | --: | --: | --: | --: | --: |")
    for height, width in GRIDS:
        scores, boundary = torch.rand(CLASSES, height, width), torch.rand(height, width)
        seconds = []
        for _ in range(REPETITIONS):
            begin = time.process_time()
            walk_boundary(scores, boundary, steps=STEPS)
            seconds.append(time.process_time() - begin)
        cells = height * width
        times = cells / (GRIDS[0][0] * GRIDS[0][1])
        best = min(seconds)
        print(
            f"| {height}x{width} | {cells} | {times:.1f} | {1e3 * best:.0f} ms | {1e6 * best / cells:.2f} us | {_peak_mb() - before:.0f} MB |"
        )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
