"""What the bootstraps of quality and of speed share: how long a block has to be, and how far Student's t reaches.

Without torch, for both the reading of reports and the clock.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
"""Confidence that every interval promises, two-sided."""


def students_t(freedom: float, level: float = LEVEL) -> float:
    """The quantile of Student's t for a two-sided interval at `level`, with `freedom` degrees of freedom, at least 1.

    Expanded in 1 / freedom around the normal one (Abramowitz & Stegun 26.7.5): right to 1 % from 3 on, too small below:
    4.17 for 4.30 at 2, 9.7 for 12.7 at 1. The clock's few blocks are that few; what its intervals cover is simulated.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return t + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)


def expanded_tail(units: float, level: float = LEVEL) -> float:
    """The quantile to read off a bootstrap of so many documents, rounds or blocks, at least 2, for `level`.

    Phi(-sqrt(n / (n - 1)) * t), t Student's quantile with n - 1 degrees of freedom (Hesterberg, "What teachers should
    know about the bootstrap", The American Statistician 2015); (1 - level) / 2 in the limit.
    """
    return NormalDist().cdf(-students_t(units - 1, level) * math.sqrt(units / (units - 1)))


def politis_white(x: Floats) -> float:
    """Length of a block for the circular bootstrap of a stationary series float64 [rows], not rounded; 1 where nothing
    is correlated. Politis & White, Econometric Reviews 23 (2004), corrected by Patton, Politis & White, 28 (2009)."""
    rounds = len(x)
    noise_lags = max(5, math.ceil(math.sqrt(math.log10(rounds))))
    longest = min(rounds - 1, math.ceil(math.sqrt(rounds)) + noise_lags)
    x = x - x.mean()
    covariances = np.array([x[: rounds - lag] @ x[lag:] / rounds for lag in range(longest + 1)])
    if covariances[0] <= 0:
        return 1.0
    significant = np.abs(covariances / covariances[0]) >= 2 * math.sqrt(math.log10(rounds) / rounds)
    last = _last_significant(significant, noise_lags)
    if last == 0:
        return 1.0
    lags = np.arange(-min(2 * last, longest), min(2 * last, longest) + 1)
    window = np.minimum(1.0, 2 * (1 - np.abs(lags) / max(lags)))
    weighted = window * covariances[np.abs(lags)]
    spread = 4 / 3 * float(weighted.sum()) ** 2
    if spread <= 0:
        return 1.0
    slope = float((np.abs(lags) * weighted).sum())
    return float((2 * slope**2 / spread * rounds) ** (1 / 3))


def _last_significant(significant: NDArray[np.bool_], noise_lags: int) -> int:
    """The first lag that so many insignificant ones follow; else the last significant one."""
    for lag in range(len(significant) - noise_lags):
        if not significant[lag + 1 : lag + 1 + noise_lags].any():
            return lag
    return int(np.flatnonzero(significant).max())
