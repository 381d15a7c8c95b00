"""The random walk's memory: a photo of the usual size stays far below what the dense matrix would need."""

from __future__ import annotations

import subprocess
import sys

PEAK_OF_A_WALK = """
import torch
from wsss_core.refine.random_walk import walk_boundary

def memory(kind):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))

torch.manual_seed(0)
torch.set_num_threads(1)
walk_boundary(torch.rand(3, 8, 8), torch.rand(8, 8), steps=256)  # all libraries loaded
scores, boundary = torch.rand(3, 94, 125), torch.rand(94, 125)
idle = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
walk_boundary(scores, boundary, steps=256)
print(memory("VmHWM") - idle)
"""


def test_a_photo_of_500_x_375_walks_in_less_than_300_mb() -> None:
    """Three classes at stride 4, 256 steps. The dense matrix alone would be 552 MB."""
    done = subprocess.run([sys.executable, "-c", PEAK_OF_A_WALK], capture_output=True, text=True, check=True)
    assert 5 < float(done.stdout) < 300  # the matrix itself has 6 MB
