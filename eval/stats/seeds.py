"""Whether a mean over seeds and examples can be told from 0: t tests with both drawn at random.

A bootstrap of few seeds is too narrow where the seeds differ: three lowest draws of three come in 1
of 27 resamples. So these stand beside it. Imports no scipy, for the reason that
eval/stats/intervals.py has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np

from eval.stats.intervals import as_scores


def p_over_seeds(per_seed: Sequence[Sequence[float]]) -> float:
    """Return the two-sided p of a mean of 0 over seeds and examples, both drawn at random.

    A t test of the two-way table of scores x_sn:

        variance of the mean = (MS_seeds + MS_examples - MS_residual) / (S N)

    with the degrees of freedom of Satterthwaite (1946), Biometrics Bulletin 2, p. 110. With one
    seed it is the paired t test over examples; with two, the larger of this p and that of a t test
    of the two seeds alone, since two may agree by chance.

    Args:
        per_seed: For each seed, one score (or difference) an example, in the same order.

    Raises:
        ValueError: If there are no seeds or no examples, the seeds differ in length, or a score is
            not finite.
    """
    rows = [as_scores(scores, name=f"per_seed[{i}]") for i, scores in enumerate(per_seed)]
    if len({len(row) for row in rows}) != 1:
        raise ValueError("every seed needs scores, all of the same examples")
    scores_SN = np.stack(rows)
    seeds_S, examples_N = scores_SN.mean(axis=1), scores_SN.mean(axis=0)
    residual_SN = scores_SN - seeds_S[:, None] - examples_N + scores_SN.mean()
    n_seeds, n_examples = scores_SN.shape
    residual_df = (n_seeds - 1) * (n_examples - 1)
    residual = float((residual_SN**2).sum()) / residual_df if residual_df else 0.0
    return _p_of_table(
        float(scores_SN.mean()),
        _variance(seeds_S) / n_seeds,
        _variance(examples_N) / n_examples,
        residual / scores_SN.size,
        n_seeds,
        n_examples,
    )


def p_of_replicates(
    values: Sequence[float], replicates: Sequence[Sequence[float]], n_examples: int
) -> float:
    """The same of a number that is no mean of scores, from its bootstrap replicates.

    Resampling gives what examples and residual add to the variance of the mean, and of each seed.

    Args:
        values: For each seed, its number.
        replicates: For each seed, its number on the same resamples of the examples.
        n_examples: How many examples a resample draws.

    Raises:
        ValueError: If there are no seeds, or the seeds differ in their number of replicates.
    """
    rows = [as_scores(one, name=f"replicates[{i}]") for i, one in enumerate(replicates)]
    if len({len(row) for row in rows}) != 1 or len(rows) != len(values):
        raise ValueError("every seed needs a number and replicates, all on the same resamples")
    values_S, replicates_SR = as_scores(values, name="values"), np.stack(rows)
    n_seeds = len(rows)
    examples = _variance(replicates_SR.mean(axis=0))
    of_one_seed = float(np.mean([_variance(row) for row in replicates_SR]))
    residual = max(of_one_seed - examples, 0.0) / (n_seeds - 1) if n_seeds > 1 else 0.0
    return _p_of_table(
        float(values_S.mean()), _variance(values_S) / n_seeds, examples, residual, n_seeds,
        n_examples,
    )  # fmt: skip


def _p_of_table(
    mean: float, seeds: float, examples: float, residual: float, n_seeds: int, n_examples: int
) -> float:
    """The p of a mean of 0, from what seeds, examples and residual say of its variance."""
    parts = (
        (seeds, n_seeds - 1),
        (examples, n_examples - 1),
        (residual, (n_seeds - 1) * (n_examples - 1)),
    )
    largest, df = max(parts)
    variance = seeds + examples - residual
    if variance > largest:
        df = variance**2 / sum(part**2 / own for part, own in parts if part)
    else:  # seeds or examples vary no more than chance
        variance = largest
    if variance <= 1e-20 * mean**2:  # all alike: what is left is the sign of each example
        return 1.0 if mean == 0 else min(1.0, 2.0 ** (1 - n_examples))
    p = _two_sided_t(abs(mean) / math.sqrt(variance), df)
    if n_seeds == 2 and seeds:  # two may agree by chance, and would then seem not to differ at all
        p = max(p, _two_sided_t(abs(mean) / math.sqrt(seeds), 1))
    return p


def _two_sided_t(t: float, df: float) -> float:
    """P(|T| > t) of Student's distribution: what cos^(df-1) has beyond atan(t / sqrt(df))."""
    start = math.atan(t / math.sqrt(df))
    end = min(math.pi / 2, start + 12 / math.sqrt(df))
    nodes, weights = _legendre()
    angles = start + (end - start) * (nodes + 1) / 2
    scale = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - math.log(math.pi) / 2
    densities = np.exp(scale + (df - 1) * np.log(np.cos(angles)))
    return min(1.0, float((end - start) * (weights @ densities)))


@cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(200)


def _variance(values_N: np.ndarray) -> float:
    """The sample variance, and 0 of one value."""
    return float(values_N.var(ddof=1)) if len(values_N) > 1 else 0.0
