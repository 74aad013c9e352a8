"""Student's t distribution: tails and quantiles, from the standard library alone.

`bashrac plan` and `bashrac report` have to start in under 0.5 s, and importing scipy.stats takes
0.9 s. The tests compare both functions with scipy.
"""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

_TINY = 1e-300


def two_sided_t(t: float, df: float) -> float:
    """P(|T| > t) with `df` degrees of freedom: the incomplete beta function at df / (df + t^2).

    Args:
        t: 0 or more, infinity allowed; NaN stands for 0 / 0 and gives 1.
        df: above 0.
    """
    if math.isnan(t) or t == 0:
        return 1.0
    if math.isinf(t * t):
        return 0.0
    beyond, within = df / (df + t * t), t * t / (df + t * t)
    a, b = df / 2, 0.5
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += -a * math.log1p(t * t / df) + b * math.log(within)
    # The fraction converges fast below the mean of the distribution, and its mirror image above.
    if beyond < (a + 1) / (a + b + 2):
        return math.exp(log_front) * _fraction(beyond, a, b) / a
    return 1.0 - math.exp(log_front) * _fraction(within, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """Continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or _TINY)
    value = d
    for m in range(1, 1000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / (1.0 + numerator * d or _TINY)
            c = 1.0 + numerator / c or _TINY
            value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


@cache
def t_quantile(df: float, level: float = 0.95) -> float:
    """The t with P(|T| > t) = 1 - level."""
    t = NormalDist().inv_cdf((1 + level) / 2)
    scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(math.pi * df) / 2
    for _ in range(50):  # Newton on log p over log t, which is a line in the tail
        p = two_sided_t(t, df)
        off = math.log(p / (1 - level))
        if abs(off) < 1e-12:
            break
        density = math.exp(scale - (df + 1) / 2 * math.log1p(t * t / df))
        t *= math.exp(off * p / (2 * t * density))
    return t
