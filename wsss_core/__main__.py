"""`wsss` and `python -m wsss_core`: run the command line; a person's mistake is one line and exit code 2."""

from __future__ import annotations

import os
import sys

from wsss_core.errors import UserError


def main() -> None:
    """Run the command line."""
    # Threads that spin while they wait slow a job down several times as soon as another process wants the same cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from wsss_core.cli import app

    try:
        app()
    except UserError as error:
        print(f"wsss: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
