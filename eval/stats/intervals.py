"""Intervals for accuracies, paired differences and seeds; eval/stats/seeds.py has the p over seeds.

Imports only the standard library and numpy: `bashrac report` has to start in under 0.5 s, and
importing scipy.stats alone takes 0.9 s. The tests compare every result with scipy or statsmodels.

Axis suffixes: S seeds, N examples, R bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from eval.stats.types import Interval

# Cells of the largest temporary array of a bootstrap: 8 MB of float64.
_CHUNK_CELLS = 1_000_000


@dataclass(frozen=True)
class PairedDifference:
    """Ours minus the baseline, over the same examples.

    Attributes:
        n: Number of examples.
        difference: Mean of ours minus mean of the baseline, in the unit of the scores.
        interval: Percentile bootstrap interval of the difference.
        wins: Examples on which ours scores higher.
        losses: Examples on which the baseline scores higher; the other n - wins - losses tie.
        p_value: McNemar's exact two-sided p for right/wrong data, None for any other scores.
    """

    n: int
    difference: float
    interval: Interval
    wins: int
    losses: int
    p_value: float | None


@dataclass(frozen=True)
class SeedSummary:
    """One score over several training seeds, all evaluated on the same examples.

    Attributes:
        mean: Mean over seeds and examples, in the unit of the scores.
        standard_deviation: Sample standard deviation (ddof=1) of the seeds' means, None for one
            seed.
        interval: Two-level percentile bootstrap interval of the mean. With one seed it holds the
            spread over examples only.
        n_seeds: Number of seeds.
        n_examples: Number of examples, the same for every seed.
    """

    mean: float
    standard_deviation: float | None
    interval: Interval
    n_seeds: int
    n_examples: int


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
    _check_level(level)
    z = NormalDist().inv_cdf((1.0 + level) / 2.0)
    p = successes / n
    scale = 1.0 + z * z / n
    center = (p + z * z / (2 * n)) / scale
    half_width = z / scale * math.sqrt(p * (1.0 - p) / n + z * z / (4 * n * n))
    # The exact ends are 0 and 1 here; rounding would leave 1e-17 or 1.0000000000000002.
    low = 0.0 if successes == 0 else center - half_width
    high = 1.0 if successes == n else center + half_width
    return Interval(low=low, high=high, level=level)


def paired_difference(
    ours: Sequence[float],
    baseline: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> PairedDifference:
    """Compare two models on the same examples.

    The interval is a percentile bootstrap over examples: a resample draws examples, and with an
    example its score under both models. Where all scores are 0 or 1 the p-value is McNemar's
    exact test; for other scores there is none.

    Args:
        ours: One score an example: 0/1 for right/wrong, or a win score in [0, 1].
        baseline: The baseline's scores for the same examples in the same order.
        seed: Seed of the bootstrap; equal inputs and seed give an equal interval.
        resamples: Number of bootstrap resamples, at least 1.
        level: Confidence level, a fraction strictly between 0 and 1.

    Returns:
        The difference with its interval, wins, losses and p-value.

    Raises:
        ValueError: If the lengths differ, there are no examples, a score is not finite, or
            resamples or level is out of range.
    """
    ours_N = as_scores(ours, name="ours")
    baseline_N = as_scores(baseline, name="baseline")
    if len(ours_N) != len(baseline_N):
        raise ValueError(
            f"ours has {len(ours_N)} scores and baseline {len(baseline_N)}: "
            "a paired difference needs both for the same examples"
        )
    _check_level(level)
    difference_N = ours_N - baseline_N
    wins = int(np.count_nonzero(difference_N > 0))
    losses = int(np.count_nonzero(difference_N < 0))
    is_binary = bool(np.isin(np.concatenate([ours_N, baseline_N]), (0.0, 1.0)).all())
    rng = np.random.default_rng(seed)
    means_R = np.concatenate(
        [
            difference_N[rng.integers(0, len(difference_N), size=(rows, len(difference_N)))].mean(
                axis=1
            )
            for rows in _chunk_rows(resamples, len(difference_N))
        ]
    )
    return PairedDifference(
        n=len(difference_N),
        difference=float(difference_N.mean()),
        interval=_percentile_interval(means_R, level=level),
        wins=wins,
        losses=losses,
        p_value=_mcnemar_exact(wins, losses) if is_binary else None,
    )


def mean_over_seeds(
    per_seed: Sequence[Sequence[float]],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> SeedSummary:
    """Summarise the scores of several training seeds on the same examples.

    A resample draws seeds with replacement, then one set of examples with replacement, which is
    the same for all drawn seeds: the test set is shared, and what its choice adds to the
    uncertainty does not shrink with more seeds. So k copies of one seed give that seed's
    interval, not one narrower by sqrt(k).

    Args:
        per_seed: For each seed, one score an example, the examples in the same order.
        seed: Seed of the bootstrap (not a training seed).
        resamples: Number of bootstrap resamples, at least 1.
        level: Confidence level, a fraction strictly between 0 and 1.

    Returns:
        The mean with its interval, and the standard deviation of the seeds' means.

    Raises:
        ValueError: If there are no seeds or no examples, the seeds differ in length, a score is
            not finite, or resamples or level is out of range.
    """
    rows = [as_scores(scores, name=f"per_seed[{i}]") for i, scores in enumerate(per_seed)]
    if not rows:
        raise ValueError("per_seed is empty: there is no mean over no seeds")
    lengths = [len(row) for row in rows]
    if len(set(lengths)) > 1:
        raise ValueError(f"the seeds have {lengths} scores: all need the same examples")
    _check_level(level)
    scores_SN = np.stack(rows)
    n_seeds, n_examples = scores_SN.shape
    seed_means_S = scores_SN.mean(axis=1)
    rng = np.random.default_rng(seed)
    means_R = []
    for count in _chunk_rows(resamples, n_examples):
        drawn_RS = rng.multinomial(n_seeds, np.full(n_seeds, 1.0 / n_seeds), size=count)
        mixed_RN = drawn_RS @ scores_SN / n_seeds
        examples_RN = rng.integers(0, n_examples, size=(count, n_examples))
        means_R.append(np.take_along_axis(mixed_RN, examples_RN, axis=1).mean(axis=1))
    return SeedSummary(
        mean=float(seed_means_S.mean()),
        standard_deviation=float(seed_means_S.std(ddof=1)) if n_seeds > 1 else None,
        interval=_percentile_interval(np.concatenate(means_R), level=level),
        n_seeds=n_seeds,
        n_examples=n_examples,
    )


def interval_of_replicates(
    per_seed: Sequence[Sequence[float]], *, seed: int = 0, level: float = 0.95
) -> Interval:
    """Return the percentile interval of a mean over seeds from bootstrap replicates.

    For numbers that are no mean of scores, such as a length-controlled win rate. Replicate r of
    every seed must come from the same resample of the examples; seeds are drawn anew for each.

    Args:
        per_seed: For each seed, its number on the same resamples in the same order.
        seed: Seed of the bootstrap (not a training seed).
        level: Confidence level, a fraction strictly between 0 and 1.

    Raises:
        ValueError: If there are no replicates, or the seeds differ in their number.
    """
    rows = [as_scores(values, name=f"per_seed[{i}]") for i, values in enumerate(per_seed)]
    if len({len(row) for row in rows}) != 1:
        raise ValueError("every seed needs replicates, all on the same resamples")
    _check_level(level)
    values_SR = np.stack(rows)
    n_seeds, resamples = values_SR.shape
    rng = np.random.default_rng(seed)
    drawn_SR = rng.integers(0, n_seeds, size=(n_seeds, resamples))
    return _percentile_interval(
        np.take_along_axis(values_SR, drawn_SR, axis=0).mean(axis=0), level=level
    )


def as_scores(values: Sequence[float], *, name: str) -> np.ndarray:
    """Return the scores as a float64 vector; a missing score must not become a number.

    Raises:
        ValueError: If there are none, one is not finite, or there are more axes than one.
    """
    scores_N = np.asarray(values, dtype=np.float64)
    if scores_N.ndim != 1:
        raise ValueError(f"{name} has {scores_N.ndim} axes, valid is one score an example")
    if scores_N.size == 0:
        raise ValueError(f"{name} is empty: an empty evaluation is an error, not 0.0")
    if not np.isfinite(scores_N).all():
        raise ValueError(f"{name} holds NaN or an infinity: leave no score unset")
    return scores_N


def _check_level(level: float) -> None:
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}, valid is a fraction between 0 and 1 (0.95)")


def _chunk_rows(resamples: int, n_examples: int) -> Iterator[int]:
    """Yield numbers of resamples that add up to all of them and fit in memory one at a time."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, valid is at least 1 (10000)")
    rows = max(1, _CHUNK_CELLS // n_examples)
    for start in range(0, resamples, rows):
        yield min(rows, resamples - start)


def _percentile_interval(means_R: np.ndarray, *, level: float) -> Interval:
    low, high = np.quantile(means_R, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(low=float(low), high=float(high), level=level)


def _mcnemar_exact(wins: int, losses: int) -> float:
    """Return the two-sided binomial p of the discordant pairs: McNemar (1947), exact form."""
    discordant = wins + losses
    if discordant == 0:
        return 1.0
    tail = sum(math.comb(discordant, k) for k in range(min(wins, losses) + 1))
    # Integers up to the last step: 2**1319 is no float, but a quotient of two such integers is.
    return min(1.0, 2 * tail / 2**discordant)
