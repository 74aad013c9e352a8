"""The model of seeds and examples against scipy and cases by hand; how often it is right."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from eval.stats.seeds import (
    difference_over_seeds,
    estimate_of_replicates,
    mean_over_seeds,
)

SCORES = [0.1, -0.4, 0.3, 0.8, 0.0, 0.5]


def test_one_seed_is_the_paired_t_test():
    found = difference_over_seeds([SCORES])
    expected = scipy_stats.ttest_1samp(SCORES, 0)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert (found.n_seeds, found.n_examples, found.spread) == (1, 6, None)


def test_seeds_that_agree_in_every_example_are_one():
    one, three = difference_over_seeds([SCORES]), difference_over_seeds([SCORES] * 3)
    assert three.p_value == pytest.approx(one.p_value)
    assert (three.low, three.high) == pytest.approx((one.low, one.high))
    assert three.spread == 0


def test_examples_that_agree_in_every_seed_leave_the_t_test_of_the_seeds():
    seeds = [0.3, 0.5, 0.9]
    expected = scipy_stats.ttest_1samp(seeds, 0)
    found = difference_over_seeds([[seed] * 50 for seed in seeds])
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_both_sources_by_hand():
    """Seeds 1, 3 and 5, examples 2 and 4: parts 4/3 and 2/2, residual 0."""
    variance = 4 / 3 + 1
    df = variance**2 / ((4 / 3) ** 2 / 2 + 1)
    both = scipy_stats.t.isf(0.025, df) * variance**0.5
    alone = scipy_stats.t.isf(0.025, 2) * (4 / 3) ** 0.5
    assert both > alone
    found = difference_over_seeds([[0, 2], [2, 4], [4, 6]])
    assert (found.low, found.high) == pytest.approx((3 - both, 3 + both))


def test_two_seeds_are_no_surer_than_a_t_test_of_the_two():
    """Seeds 1 and 3: t is 2 / 1 with one degree of freedom, whatever the examples say."""
    found = difference_over_seeds([[1, 1.2, 0.8, 1], [3, 3.4, 2.8, 2.8]])
    assert found.p_value == pytest.approx(scipy_stats.ttest_1samp([1, 3], 0).pvalue)
    assert found.high - found.value == pytest.approx(scipy_stats.t.isf(0.025, 1))


@pytest.mark.parametrize(("n", "expected"), [(1, 1.0), (2, 0.5), (6, 1 / 32)])
def test_examples_that_all_differ_alike_leave_their_signs(n, expected):
    for seeds in (1, 3):
        found = difference_over_seeds([[1.0] * n] * seeds)
        assert found.p_value == expected and (found.low > 0) == (expected < 0.05)
    assert difference_over_seeds([[0.0] * n] * 3).p_value == 1.0


def test_verdicts_that_are_all_alike_prove_little():
    """Twenty losses at 0.001, three ties, four wins to none: none is certain."""
    low, high = mean_over_seeds([[0.001] * 20], verdicts=True)[1:3]
    assert low == 0 and 0.15 < high < 0.25
    low, high = mean_over_seeds([[0.5] * 3], verdicts=True)[1:3]
    assert 0 < low < 0.2 and 0.8 < high < 1
    assert difference_over_seeds([[1.0] * 4], verdicts=True).low < 0
    assert difference_over_seeds([[1.0] * 100], verdicts=True)[1:3] == pytest.approx(
        (0.93, 1), abs=0.02
    )


def test_right_and_wrong_of_one_seed_is_the_interval_of_bonett_and_price():
    """30 examples, 9 won and 2 lost: (9 + 1 - 2 - 1) / 32, its variance with one more of each."""
    found = difference_over_seeds([[1.0] * 9 + [-1.0] * 2 + [0.0] * 19], verdicts=True)
    center = (9 - 2) / 32
    variance = ((10 + 3) / 32 - center**2) / 31
    half = scipy_stats.t.isf(0.025, 31) * variance**0.5
    assert (found.low, found.high) == pytest.approx((center - half, center + half))
    assert found.value == pytest.approx(7 / 30)


@pytest.mark.parametrize("verdicts", [False, True])
@pytest.mark.parametrize("n_seeds", [1, 2, 3, 5])
def test_the_interval_excludes_0_exactly_where_p_is_small(n_seeds, verdicts):
    rng = np.random.default_rng(n_seeds)
    both = set()
    for _ in range(150):
        scores = rng.normal(0.3, 1, size=(n_seeds, 30)) + 0.1 * rng.normal(size=(n_seeds, 1))
        scores = np.clip(np.round(scores), -1, 1) if verdicts else scores
        found = difference_over_seeds(scores.tolist(), verdicts=verdicts)
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
        both.add(found.p_value < 0.05)
    assert both == {True, False}


@pytest.mark.parametrize("seed_effect", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_equal_arms_rarely_differ(n_seeds, seed_effect):
    """However much seeds scatter; `benchmarks/protocol.py` has more cells and trials."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(1000):
        scores = rng.normal(size=(n_seeds, 60)) + rng.normal(size=60)
        scores += seed_effect * rng.normal(size=(n_seeds, 1))
        wrong += difference_over_seeds(scores.tolist()).p_value < 0.05
    assert wrong / 1000 <= 0.07


def test_replicates_say_the_same_as_the_scores_they_are_means_of():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 80)) + rng.normal(size=80) + rng.normal(size=(3, 1)) + 1
    drawn = rng.integers(0, 80, size=(4000, 80))
    replicates = [row[drawn].mean(axis=1).tolist() for row in scores]
    found = estimate_of_replicates(scores.mean(axis=1).tolist(), replicates, 80)
    expected = difference_over_seeds(scores.tolist())
    assert found.p_value == pytest.approx(expected.p_value, rel=0.1)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=0.1)


@pytest.mark.parametrize("per_seed", [[], [[]], [[1.0], [1.0, 2.0]], [[math.nan]]])
def test_tables_that_are_none_are_refused(per_seed):
    with pytest.raises(ValueError):
        difference_over_seeds(per_seed)
    with pytest.raises(ValueError):
        mean_over_seeds(per_seed)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_levels_that_are_none_are_refused(level):
    with pytest.raises(ValueError, match="level"):
        mean_over_seeds([SCORES], level=level)
