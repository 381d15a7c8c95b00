"""The one exception that stands for a mistake of the person or of their data, not of the program."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input. Its message is one line that names the file, the key and what was expected.

    The command line prints the line alone and ends with exit code 2; every other exception is a bug and keeps
    its stack trace.
    """

    def __init__(self, message: str) -> None:
        # A DataLoader's worker raises again in the parent with its whole traceback as the message: keep the end.
        message = message.rsplit(f"{type(self).__name__}: ", 1)[-1]
        super().__init__(" ".join(message.split()))


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the valid name nearest to `name`, or the list of the valid names."""
    names = [str(v) for v in valid]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; valid: {', '.join(sorted(names))}" if names else ""
