"""Means and differences with two sources of chance: the seeds trained and the examples evaluated.

A score x_sn of seed s on example n (or a paired difference of two stages) is the sum of a mean, an
effect of the seed, an effect of the example, and a residual. The three mean squares of the table
give the parts of the variance of the mean of all scores:

    seeds    = MS_seeds / (S N)       of seeds, residual included
    examples = MS_examples / (S N)    of examples, residual included
    residual = MS_residual / (S N)    in both, so subtracted once

    variance = examples + max(0, seeds - residual), but not below `seeds`
    1 / df   = (seeds / variance)^2 / (S - 1) + (examples / variance)^2 / (N - 1)

(Satterthwaite 1946, Biometrics Bulletin 2, p. 110), and mean +- t(df) sqrt(variance) is an
interval. It is too narrow when a few seeds agree by chance, so the interval of the seeds alone,
mean +- t(S - 1) sqrt(seeds), is computed too. The result is the wider interval and the larger p, so
the interval excludes 0 exactly when p is below 1 - level. With one seed this is the paired t test
over examples, and says nothing about other seeds. `benchmarks/protocol.py` simulates the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from eval.stats.intervals import as_scores
from eval.stats.student import t_quantile, two_sided_t

# Added to scores between 0 and 1, which may all be equal by chance. To a mean: two failures and
# two successes (Agresti and Coull 1998, The American Statistician 52, p. 119). To a difference: one
# example that either side wins (Bonett and Price 2012, J. Educ. Behav. Stat. 37, p. 479).
_ADDED_TO_MEANS = (-0.5, -0.5, 0.5, 0.5)  # around one half
_ADDED_TO_DIFFERENCES = (-1.0, 1.0)
_each_p = np.vectorize(two_sided_t, otypes=[float])


class Estimate(NamedTuple):
    """A mean over seeds and examples with its interval, in the unit of the scores.

    Attributes:
        spread: standard deviation of the seeds' means (ddof=1), None for one seed.
        p_value: two-sided, for a true mean of 0; below 1 - level exactly when the interval
            excludes 0.
        detectable: the true mean that would be significant in four of five cases.
    """

    value: float
    low: float
    high: float
    n_seeds: int
    n_examples: int
    spread: float | None
    p_value: float
    detectable: float


class Parts(NamedTuple):
    """A mean and the parts of its variance, as above: floats, or arrays of one shape."""

    mean: Any
    seeds: Any
    examples: Any
    residual: Any


def mean_over_seeds(
    per_seed: Sequence[Sequence[float]],
    *,
    verdicts: bool = False,
    shares: bool = False,
    level: float = 0.95,
) -> Estimate:
    """Return the mean score of a stage over its seeds and examples.

    Args:
        per_seed: For each seed, one score per example, with the examples in the same order.
        verdicts: Whether scores are verdicts between 0 and 1. A few equal verdicts prove little, so
            the interval then counts two more failures and two more successes.
        shares: Whether scores, and so the interval, are between 0 and 1; implied by `verdicts`.
        level: Confidence level, a fraction strictly between 0 and 1.

    Raises:
        ValueError: If there are no seeds or no examples, the seeds differ in length, a score is
            not finite, or the level is out of range.
    """
    table = _table(per_seed)
    if not verdicts:
        found = _estimate(table, table, level)
        if shares:
            found = found._replace(low=max(0.0, found.low), high=min(1.0, found.high))
        return found
    table = table - 0.5  # so that swapping the sides swaps the interval, to the last digit
    found = _estimate(table, np.hstack([table, np.tile(_ADDED_TO_MEANS, (len(table), 1))]), level)
    value, low, high = found.value + 0.5, max(-0.5, found.low) + 0.5, min(0.5, found.high) + 0.5
    return found._replace(value=value, low=low, high=high)


def difference_over_seeds(
    per_seed: Sequence[Sequence[float]], *, verdicts: bool = False, level: float = 0.95
) -> Estimate:
    """Return the mean of paired differences, as `mean_over_seeds` does for scores.

    With `verdicts` they are between -1 and 1, and one more win is counted for each side.
    """
    table = _table(per_seed)
    if not verdicts:
        found = _estimate(table, table, level)
        if found.low == found.high and found.p_value >= 1 - level:  # equal, but too few
            found = found._replace(low=min(found.value, 0.0), high=max(found.value, 0.0))
        return found
    found = _estimate(table, added_to(table), level)
    return found._replace(low=max(-1.0, found.low), high=min(1.0, found.high))


def estimate_of_replicates(
    values: Sequence[float],
    replicates: Sequence[Sequence[float]],
    n_examples: int,
    *,
    level: float = 0.95,
) -> Estimate:
    """Return the same for a statistic that is not a mean of scores, from bootstrap replicates.

    The variance over resamples of the mean over seeds is the part of examples; that of a single
    seed includes more of the residual.

    Args:
        values: For each seed, its statistic.
        replicates: For each seed, its statistic on the same resamples of the examples.
        n_examples: How many examples a resample draws.
        level: Confidence level, a fraction strictly between 0 and 1.

    Raises:
        ValueError: If there are no seeds, or the seeds differ in their number of replicates.
    """
    rows = [as_scores(row, name=f"replicates[{i}]") for i, row in enumerate(replicates)]
    if len({len(row) for row in rows}) != 1 or len(rows) != len(values):
        raise ValueError("every seed needs a value, and replicates on the same resamples")
    values_S, replicates_SR = as_scores(values, name="values"), np.stack(rows)
    n_seeds = len(rows)
    examples = _variance(replicates_SR.mean(axis=0))
    of_one_seed = float(np.mean([_variance(row) for row in replicates_SR]))
    residual = max(of_one_seed - examples, 0.0) / (n_seeds - 1) if n_seeds > 1 else 0.0
    parts = Parts(float(values_S.mean()), _variance(values_S) / n_seeds, examples, residual)
    return _with_interval(parts, values_S, n_examples, level)


def parts_of(scores_SN: np.ndarray) -> Parts:
    """The parts for tables of scores, [..., seeds, examples]."""
    n_seeds, n_examples = scores_SN.shape[-2:]
    seeds_S, examples_N = scores_SN.mean(axis=-1), scores_SN.mean(axis=-2)
    mean = seeds_S.mean(axis=-1)
    seeds = seeds_S.var(axis=-1, ddof=1) / n_seeds if n_seeds > 1 else np.zeros_like(mean)
    examples = (
        examples_N.var(axis=-1, ddof=1) / n_examples if n_examples > 1 else np.zeros_like(mean)
    )
    # The residual sum of squares: the total minus those of seeds and of examples.
    total = scores_SN.var(axis=(-2, -1)) * n_seeds * n_examples
    rest = total - n_examples * n_seeds * ((n_seeds - 1) * seeds + (n_examples - 1) * examples)
    df = (n_seeds - 1) * (n_examples - 1)
    residual = np.maximum(rest, 0.0) / (df * n_seeds * n_examples) if df else np.zeros_like(mean)
    return Parts(mean, seeds, examples, residual)


def added_to(differences_SN: np.ndarray) -> np.ndarray:
    """Append the added examples to tables of paired differences, [..., seeds, examples]."""
    added = np.broadcast_to(_ADDED_TO_DIFFERENCES, (*differences_SN.shape[:-1], 2))
    return np.concatenate([differences_SN, added], axis=-1)


def two_sided_p(parts: Parts, n_seeds: int, n_examples: int, *, true: float = 0.0) -> Any:
    """The p-value of a true mean; parts may be arrays of any shape."""
    off = np.abs(parts.mean - true)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum.reduce(
            [
                _each_p(off / np.sqrt(variance), df)
                for variance, df in _sources(parts, n_seeds, n_examples)
            ]
        )


def _sources(parts: Parts, n_seeds: int, n_examples: int) -> list[tuple[Any, Any]]:
    """Variance and degrees of freedom of the mean: of seeds and examples, and of seeds alone."""
    variance = np.maximum(
        parts.examples + np.maximum(parts.seeds - parts.residual, 0.0), parts.seeds
    )
    of_seeds, of_examples = (
        np.divide(part, variance, out=np.zeros_like(variance), where=variance > 0) ** 2
        for part in (parts.seeds, parts.examples)
    )
    per_df = of_seeds / max(n_seeds - 1, 1) + of_examples / max(n_examples - 1, 1)
    both = variance, 1 / np.maximum(per_df, 1e-6)
    return [both, (parts.seeds, np.full_like(variance, n_seeds - 1))] if n_seeds > 1 else [both]


def _estimate(scores_SN: np.ndarray, counted_SN: np.ndarray, level: float) -> Estimate:
    parts = parts_of(counted_SN)
    found = _with_interval(parts, scores_SN.mean(axis=1), counted_SN.shape[1], level)
    return found._replace(value=float(scores_SN.mean()), n_examples=scores_SN.shape[1])


def _with_interval(parts: Parts, means_S: np.ndarray, n_examples: int, level: float) -> Estimate:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}, valid is a fraction between 0 and 1 (0.95)")
    n_seeds, mean = len(means_S), float(parts.mean)
    spread = float(means_S.std(ddof=1)) if n_seeds > 1 else None
    sources = [(float(v), float(df)) for v, df in _sources(parts, n_seeds, n_examples)]
    if sources[0][0] <= 1e-20 * mean**2:  # all equal: use the sign test
        p = 1.0 if mean == 0 else min(1.0, 2.0 ** (1 - n_examples))
        return Estimate(mean, mean, mean, n_seeds, n_examples, spread, p, 0.0)
    half = max(t_quantile(df, level) * math.sqrt(variance) for variance, df in sources)
    missed = max(t_quantile(df, 0.6) * math.sqrt(variance) for variance, df in sources)
    p = float(two_sided_p(parts, n_seeds, n_examples))
    ends = (mean - half, mean + half)
    return Estimate(mean, *ends, n_seeds, n_examples, spread, p, half + missed)


def _table(per_seed: Sequence[Sequence[float]]) -> np.ndarray:
    rows = [as_scores(scores, name=f"per_seed[{i}]") for i, scores in enumerate(per_seed)]
    if len({len(row) for row in rows}) != 1:
        raise ValueError("every seed needs scores of the same examples")
    return np.stack(rows)


def _variance(values_N: np.ndarray) -> float:
    """The sample variance; 0 for a single value."""
    return float(values_N.var(ddof=1)) if len(values_N) > 1 else 0.0
