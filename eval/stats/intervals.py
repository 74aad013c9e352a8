"""Closed forms for binary scores: Wilson's interval, McNemar's exact test.

Imports only the standard library and numpy: `bashrac report` has to start in under 0.5 s, and
importing scipy.stats alone takes 0.9 s. The tests compare every result with scipy or statsmodels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from eval.stats.types import Interval


def wilson_interval(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Return the Wilson score interval of a proportion, without continuity correction.

    With p = successes / n and z the normal quantile at (1 + level) / 2, the ends are
    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n): Wilson (1927), JASA 22, p. 209.

    Args:
        successes: Number of successes, 0 to n.
        n: Number of trials, at least 1.
        level: Confidence level, a fraction strictly between 0 and 1.

    Returns:
        The interval, in fractions; exactly 0 at no success and exactly 1 at no failure.

    Raises:
        ValueError: If n is not positive, successes is outside 0..n, or level is out of range.
    """
    if n <= 0:
        raise ValueError(f"n is {n}: a proportion needs at least one trial")
    if not 0 <= successes <= n:
        raise ValueError(f"successes is {successes}, valid is 0 to n={n}")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}, valid is a fraction between 0 and 1 (0.95)")
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    p = successes / n
    scale = 1.0 + z * z / n
    center = (p + z * z / (2 * n)) / scale
    half_width = z / scale * math.sqrt(p * (1.0 - p) / n + z * z / (4 * n * n))
    # The exact ends are 0 and 1 here; rounding would leave 1e-17 or 1.0000000000000002.
    low = 0.0 if successes == 0 else center - half_width
    high = 1.0 if successes == n else center + half_width
    return Interval(low=low, high=high, level=level)


def as_scores(values: Sequence[float], *, name: str) -> np.ndarray:
    """Return the scores as a float64 vector; a missing score must not become a number.

    Raises:
        ValueError: If there are no scores, a score is not finite, or there is more than one axis.
    """
    scores_N = np.asarray(values, dtype=np.float64)
    if scores_N.ndim != 1:
        raise ValueError(f"{name} has {scores_N.ndim} axes, expected one score per example")
    if scores_N.size == 0:
        raise ValueError(f"{name} is empty: an empty evaluation is an error, not 0.0")
    if not np.isfinite(scores_N).all():
        raise ValueError(f"{name} contains NaN or infinity: every score must be a finite number")
    return scores_N


def mcnemar_exact(wins: int, losses: int) -> float:
    """Return the two-sided binomial p of the discordant pairs: McNemar (1947), exact form."""
    discordant = wins + losses
    if discordant == 0:
        return 1.0
    tail = sum(math.comb(discordant, k) for k in range(min(wins, losses) + 1))
    # Integers up to the division: 2**1319 overflows a float, the quotient does not.
    return min(1.0, 2 * tail / 2**discordant)
