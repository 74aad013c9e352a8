"""The t tests over seeds against scipy, cases by hand, and samples without any difference."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval.stats import seeds as seed_tests
from eval.stats.intervals import mean_over_seeds
from eval.stats.seeds import p_of_replicates, p_over_seeds


@pytest.mark.parametrize("df", [1, 1.3, 2, 7.5, 60, 1318, 1e5])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.96, 4.303, 12.0])
def test_the_tail_of_the_t_distribution_is_scipys(t, df):
    expected = 2 * scipy_stats.t.sf(t, df)
    assert seed_tests._two_sided_t(t, df) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_p_of_one_seed_is_the_paired_t_test():
    scores = [0.1, -0.4, 0.3, 0.8, 0.0, 0.5]
    assert p_over_seeds([scores]) == pytest.approx(scipy_stats.ttest_1samp(scores, 0).pvalue)


def test_p_of_seeds_that_agree_in_every_example_is_that_of_their_examples():
    scores = [0.1, -0.4, 0.3, 0.8, 0.0, 0.5]
    assert p_over_seeds([scores] * 3) == pytest.approx(p_over_seeds([scores]))


def test_p_of_examples_that_agree_in_every_seed_is_the_t_test_of_the_seeds():
    seeds = [0.3, 0.5, 0.9]
    expected = scipy_stats.ttest_1samp(seeds, 0).pvalue
    assert p_over_seeds([[seed] * 50 for seed in seeds]) == pytest.approx(expected)


def test_p_by_hand():
    """Seeds 1, 3 and 5, examples 2 and 4: parts 4/3, 2/2, residual 0; 7/3 with df as they say."""
    df = (7 / 3) ** 2 / ((4 / 3) ** 2 / 2 + 1)
    assert p_over_seeds([[0, 2], [2, 4], [4, 6]]) == pytest.approx(
        2 * scipy_stats.t.sf(3 / (7 / 3) ** 0.5, df)
    )


def test_p_of_two_seeds_is_no_less_than_that_of_a_t_test_of_the_two():
    """Seeds 1 and 3: t of 2 / 1 with one degree of freedom is 0.295; with examples 0 and 4, more."""
    both = 2 * scipy_stats.t.sf(2 / 5**0.5, 25 / 17)
    assert p_over_seeds([[-1, 3], [1, 5]]) == pytest.approx(both)
    alone = 2 * scipy_stats.t.sf(2 / 1, 1)
    assert p_over_seeds([[1, 1.2, 0.8, 1], [3, 3.4, 2.8, 2.8]]) == pytest.approx(alone, rel=0.05)


@pytest.mark.parametrize(("n", "expected"), [(1, 1.0), (2, 0.5), (6, 1 / 32)])
def test_p_of_examples_that_all_differ_alike_is_that_of_their_signs(n, expected):
    assert p_over_seeds([[1.0] * n]) == p_over_seeds([[1.0] * n] * 3) == expected
    assert p_over_seeds([[0.0] * n] * 3) == 1.0


def found_better_or_worse(seed_effect, *, trials=400, n_seeds=3, n=60):
    """Shares of trials without any difference where p is below 0.05, and the interval excludes 0."""
    rng = np.random.default_rng(1)
    by_p = by_interval = 0
    for _ in range(trials):
        scores = rng.normal(size=(n_seeds, n)) + rng.normal(size=n)
        scores += seed_effect * rng.normal(size=(n_seeds, 1))
        interval = mean_over_seeds(scores.tolist(), resamples=200).interval
        by_p += p_over_seeds(scores.tolist()) < 0.05
        by_interval += not interval.low <= 0 <= interval.high
    return by_p / trials, by_interval / trials


@pytest.mark.parametrize("n_seeds", [2, 3])
@pytest.mark.parametrize("seed_effect", [0.5, 2.0])
def test_few_seeds_that_differ_are_no_finding(seed_effect, n_seeds):
    """Where seeds differ as examples do, or more, few are often on one side of 0."""
    by_p, by_interval = found_better_or_worse(seed_effect, n_seeds=n_seeds)
    assert by_p <= 0.075 and by_interval >= 0.09


def test_where_examples_decide_p_is_neither_blind_nor_credulous():
    by_p, by_interval = found_better_or_worse(0.0)
    assert 0.01 <= by_p <= 0.075 and by_interval <= 0.075


def test_two_seeds_that_both_show_much_are_a_finding():
    rng = np.random.default_rng(2)
    assert p_over_seeds((rng.normal(size=(2, 60)) * 0.02 + rng.normal(size=60) + 2).tolist()) < 0.01


def test_p_of_replicates_is_that_of_the_scores_they_are_means_of():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 80)) + rng.normal(size=80) + rng.normal(size=(3, 1)) + 1
    drawn = rng.integers(0, 80, size=(4000, 80))
    replicates = [row[drawn].mean(axis=1).tolist() for row in scores]
    found = p_of_replicates(scores.mean(axis=1).tolist(), replicates, 80)
    assert found == pytest.approx(p_over_seeds(scores.tolist()), rel=0.1)


@pytest.mark.parametrize("per_seed", [[], [[]], [[1.0], [1.0, 2.0]], [[math.nan]]])
def test_p_over_seeds_refuses(per_seed):
    with pytest.raises(ValueError):
        p_over_seeds(per_seed)
