"""`wsss` and `python -m wsss_core`: run the command line; a person's mistake is one line and exit code 2."""

from __future__ import annotations

import ctypes
import os
import sys

from wsss_core.errors import UserError


def main() -> None:
    """Run the command line."""
    # Threads that spin while they wait slow a job down several times as soon as another process wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _keep_freed_memory()
    from wsss_core.cli import app

    try:
        app()
    except UserError as error:
        print(f"wsss: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next request.

    By default it hands large blocks back to the system, and a training on the CPU faults every page of its activations in again in
    every step: more than a hundred thousand a step, a quarter of its time (MobileNetV2, 16 images of 160 pixels).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # of glibc
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)  # never


if __name__ == "__main__":
    main()
