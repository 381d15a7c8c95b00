"""Paired differences over seeds: what a table says of its rows beside one of them.

Two rows with the same seed share their draws as far as their settings do, so the difference is taken seed by seed, which removes what a seed does to both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

CONFIDENCE = 0.95
DIFFERENCES = ("difference", "difference_low", "difference_high", "difference_n")
"""Columns that `compare` adds to a table."""


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> dict[str, float]:
    """Return mean, confidence interval and number of the differences ``values[seed] - reference[seed]`` over the seeds of both.

    The interval is Student's t of n paired differences d, mean(d) ± t_(0.975, n-1) s(d) / √n, with s their sample standard deviation: it takes them as
    independent and roughly normal. With n = 2 and 3 the factor t is 12.7 and 4.3, with n = 5 it is 2.8.

    Parameters
    ----------
    values, reference
        Figures by seed, in any unit.

    Returns
    -------
    dict
        `DIFFERENCES`, in that unit: NaN for the mean without a pair, for the limits with fewer than two; `difference_n` is an int.
    """
    from scipy.special import stdtrit

    differences = np.array([value - reference[seed] for seed, value in values.items() if seed in reference], np.float64)
    n = len(differences)
    mean = float(differences.mean()) if n else np.nan
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2) * differences.std(ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return dict(zip(DIFFERENCES, (mean, mean - half, mean + half, n), strict=True))


def verdict(difference: float, low: float, high: float) -> str:
    """Return `same` if every pair was equal, `undecided` if the interval holds 0 or there is none, else nothing."""
    if difference == 0 and not low < 0:
        return "same"
    return "" if low > 0 or high < 0 else "undecided"
