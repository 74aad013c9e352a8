"""Power: which true difference between two arms a report would detect, before any training.

This follows the model of `eval.stats.seeds`, for two arms with an accuracy of one half, as in the
simulations of `benchmarks/protocol.py`. One part of the variance of an example's difference is
common to all seeds, another is not, and each arm's accuracy varies over seeds. With hundreds of
examples all variances are known almost exactly, except the variance over a few seeds: its estimate
is chi-squared distributed with one degree of freedom less than there are seeds, and the power is a
mean over that distribution.

Imports only the standard library: `bashrac plan` has to start in under 0.5 s.
"""

from __future__ import annotations

import math
from functools import cache

from eval.stats.student import t_quantile

# Variances of the difference of an example's scores (0 or 1) between these arms: the part that all
# seeds share, since arms find different examples easy, and the part that differs between seeds.
SHARED, CHANCE = 0.0496, 0.2825
SCATTER = 1.0  # points: standard deviation of an arm's accuracy over seeds
_NODES = 30


def share_found(points: float, n: int, seeds: int, *, scatter: float = SCATTER) -> float:
    """The power: the share of reports in which a true difference is significant (p below 0.05).

    Args:
        points: the true difference, in points.
        n: number of test examples.
        seeds: per arm, at least two.
        scatter: standard deviation of an arm's accuracy over its seeds, in points.
    """
    true, (spread, needed) = points / 100, _needed(n, seeds, scatter)
    unit = spread * math.sqrt(2)
    return sum(
        weight * (math.erfc((least - true) / unit) + math.erfc((least + true) / unit)) / 2
        for weight, least in needed
    )


def detectable(n: int, seeds: int, *, scatter: float = SCATTER) -> float:
    """The true difference, in points, with a power of 0.8."""
    low, high = 0.0, 400.0
    for _ in range(16):
        middle = (low + high) / 2
        is_less = share_found(middle, n, seeds, scatter=scatter) < 0.8
        low, high = (middle, high) if is_less else (low, middle)
    return high


def seeds_needed(points: float, n: int, *, most: int = 20) -> int | None:
    """The fewest seeds with a power of 0.8 for a difference; None if more than `most`."""
    low, high = 1, most
    if share_found(points, n, high) < 0.8:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share_found(points, n, middle) >= 0.8 else (middle, high)
    return high


@cache
def _needed(n: int, seeds: int, scatter: float) -> tuple[float, list[tuple[float, float]]]:
    """Standard deviation of the measured difference, and the least significant difference.

    The latter depends on the estimated variance over seeds: a list of (probability, difference).
    """
    if seeds < 2:
        raise ValueError(f"seeds is {seeds}: one seed says nothing about the variance over seeds")
    residual, of_seed = CHANCE / (seeds * n), 2 * (scatter / 100) ** 2 / seeds
    spread = math.sqrt(SHARED / n + residual + of_seed)
    examples = (SHARED + 2 / n) / n + residual  # with one added example for each side
    needed, df = [], seeds - 1
    width = 4.5 / math.sqrt(2 * df)
    first = max(0.0, 1 - width)
    for node in range(_NODES):
        chi = first + (1 + width - first) * (node + 0.5) / _NODES  # estimated / true deviation
        weight = math.exp((df - 1) * math.log(chi) - df * (chi * chi - 1) / 2)
        by_seeds = (of_seed + residual) * chi * chi
        both = max(examples + max(0.0, by_seeds - residual), by_seeds)
        per_df = (by_seeds / both) ** 2 / df + (examples / both) ** 2 / max(n - 1, 1)
        least = max(t_quantile(1 / per_df) * math.sqrt(both), t_quantile(df) * math.sqrt(by_seeds))
        needed.append((weight, least))
    total = sum(weight for weight, _ in needed)
    return spread, [(weight / total, least) for weight, least in needed]
