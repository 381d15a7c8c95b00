"""`python -m benchmarks`: measure hot spots and print one table; see `python -m benchmarks --help`."""

import os
import sys

# One thread, for both forms alike. Libraries read these when they are loaded, so nothing is imported before.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)

    from benchmarks.command import main

    sys.exit(main())
