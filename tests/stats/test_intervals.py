"""Intervals and tests against scipy, statsmodels and cases that can be worked out by hand."""

import json
import math
import tracemalloc
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar

from eval.stats import intervals
from eval.stats.intervals import mean_over_seeds, paired_difference, wilson_interval


def as_pairs(both_right, wins, losses, both_wrong=0):
    """Return 0/1 scores of two models with these counts of pairs."""
    ours = [1] * both_right + [1] * wins + [0] * losses + [0] * both_wrong
    baseline = [1] * both_right + [0] * wins + [1] * losses + [0] * both_wrong
    return ours, baseline


# --- Wilson -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    counts=st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    level=st.floats(0.5, 0.999),
)
@example(counts=(0, 1), level=0.95)
@example(counts=(1, 1), level=0.95)
@example(counts=(1319, 1319), level=0.95)
def test_wilson_equals_scipy(counts, level):
    successes, n = counts
    ours = wilson_interval(successes, n, level=level)
    theirs = scipy_stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)
    assert ours.level == level


def test_wilson_of_no_success_in_one_trial():
    """With p = 0 and n = 1 the upper end is (z²/2 + z·z/2) / (1 + z²) = z² / (1 + z²).

    z = 1.959963984540054, z² = 3.841458820694124: 3.841458820694124 / 4.841458820694124 =
    0.793450684...
    """
    interval = wilson_interval(0, 1)
    assert interval.low == 0.0
    assert interval.high == pytest.approx(3.841458820694124 / 4.841458820694124, abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 6, 10, 49, 805, 1319])
def test_wilson_ends_are_exact_at_none_and_all(n):
    assert wilson_interval(0, n).low == 0.0
    assert wilson_interval(n, n).high == 1.0


@pytest.mark.parametrize(
    ("successes", "n"),
    [(0, 0), (0, -1), (-1, 5), (6, 5)],
    ids=["empty", "negative-n", "negative-successes", "more-than-n"],
)
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match=r"n is|successes is"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0], ids=["zero", "one", "percent"])
def test_wilson_refuses_levels_that_are_no_fraction(level):
    with pytest.raises(ValueError, match="level is"):
        wilson_interval(1, 2, level=level)


# --- paired difference ------------------------------------------------------------------------


def test_paired_difference_counts_wins_and_losses():
    """Of ten pairs ours is right in 3 + 4 = 7, the baseline in 3 + 1 = 4: (7 - 4) / 10 = 0.3."""
    result = paired_difference(*as_pairs(both_right=3, wins=4, losses=1, both_wrong=2))
    assert (result.n, result.wins, result.losses) == (10, 4, 1)
    assert result.difference == pytest.approx(0.3, abs=1e-15)
    assert result.interval.low <= 0.3 <= result.interval.high


def test_bootstrap_of_two_examples_is_a_known_distribution():
    """Differences 1 and 0: a resample of two has mean 0, 1/2, 1 with chance 1/4, 1/2, 1/4.

    So the 2.5 % and 97.5 % points are 0 and 1, and the 30 % and 70 % points are both 1/2.
    """
    wide = paired_difference([1, 0], [0, 0]).interval
    narrow = paired_difference([1, 0], [0, 0], level=0.4).interval
    assert (wide.low, wide.high) == (0.0, 1.0)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_bootstrap_is_paired_not_two_samples():
    """Ours is right exactly 0.25 above the baseline everywhere: no resample says otherwise.

    Resampling the two models apart would spread by about 0.25 (their scores range over 0..0.75).
    """
    baseline = [0.0, 0.25, 0.5, 0.75]
    ours = [0.25, 0.5, 0.75, 1.0]
    result = paired_difference(ours, baseline)
    assert (result.interval.low, result.interval.high) == (0.25, 0.25)


def test_bootstrap_equals_scipy_within_monte_carlo_error():
    """A 2.5 % point from 10,000 resamples has a standard error of about 0.027 sigma.

    sqrt(0.025 * 0.975 / 10000) / 0.0584 = 0.027; two of them differ by 0.038 sigma, and 0.2 sigma
    is five times that. An interval at 90 % instead of 95 % would be off by 0.315 sigma.
    """
    rng = np.random.default_rng(7)
    ours, baseline = rng.random(400), rng.random(400) ** 2
    sigma = np.std(ours - baseline) / math.sqrt(400)
    result = paired_difference(ours.tolist(), baseline.tolist(), seed=1)
    theirs = scipy_stats.bootstrap(
        (ours, baseline),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        paired=True,
        n_resamples=10_000,
        batch=1000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert result.interval.low == pytest.approx(theirs.low, abs=0.2 * sigma)
    assert result.interval.high == pytest.approx(theirs.high, abs=0.2 * sigma)


def test_identical_models_differ_by_exactly_nothing():
    scores = [0.1, 0.7, 0.3]
    result = paired_difference(scores, scores)
    assert (result.difference, result.interval.low, result.interval.high) == (0.0, 0.0, 0.0)
    assert (result.wins, result.losses, result.p_value) == (0, 0, None)


def test_same_seed_same_interval_other_seed_other_interval():
    scores = np.random.default_rng(0).random((2, 50)).tolist()
    assert paired_difference(*scores, seed=3) == paired_difference(*scores, seed=3)
    assert paired_difference(*scores, seed=3) != paired_difference(*scores, seed=4)


def test_chunks_change_memory_and_nothing_else(monkeypatch):
    scores = np.random.default_rng(0).random((2, 37)).tolist()
    in_one = paired_difference(*scores, resamples=1000)
    monkeypatch.setattr(intervals, "_CHUNK_CELLS", 37 * 11)
    assert paired_difference(*scores, resamples=1000) == in_one


def test_bootstrap_of_the_whole_test_set_stays_small():
    """All at once, 1,319 x 10,000 indices and the gathered scores take 2 x 105 MB."""
    ours, baseline = as_pairs(both_right=500, wins=200, losses=150, both_wrong=469)
    tracemalloc.start()
    result = paired_difference(ours, baseline)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.n == 1319
    assert peak < 32e6


def test_result_can_be_written_as_json():
    result = paired_difference([1, 0], [0, 0])
    assert json.loads(json.dumps(asdict(result)))["interval"]["level"] == 0.95


@pytest.mark.parametrize(
    ("ours", "baseline", "message"),
    [
        ([], [], "empty"),
        ([1, 0], [1], "same examples"),
        ([1], [1, 0], "same examples"),
        ([float("nan")], [0], "NaN"),
        ([0], [float("inf")], "NaN"),
        ([[1, 0]], [[0, 0]], "axes"),
    ],
    ids=["empty", "shorter-baseline", "shorter-ours", "nan", "infinity", "two-axes"],
)
def test_paired_difference_refuses(ours, baseline, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(ours, baseline)


def test_paired_difference_refuses_no_resamples():
    with pytest.raises(ValueError, match="resamples is 0"):
        paired_difference([1, 0], [0, 0], resamples=0)


def test_paired_difference_refuses_a_level_in_percent():
    with pytest.raises(ValueError, match="level is 95"):
        paired_difference([1, 0], [0, 0], level=95)


# --- McNemar ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(wins=st.integers(0, 300), losses=st.integers(0, 300))
@example(wins=0, losses=0)
@example(wins=1, losses=0)
@example(wins=150, losses=150)
@example(wins=600, losses=719)
def test_mcnemar_equals_scipy_and_statsmodels(wins, losses):
    ours, baseline = as_pairs(both_right=3, wins=wins, losses=losses, both_wrong=2)
    p_value = paired_difference(ours, baseline, resamples=1).p_value
    table = [[3, wins], [losses, 2]]
    theirs = mcnemar(table, exact=True)
    assert p_value == pytest.approx(theirs.pvalue, rel=1e-9)  # pyright: ignore
    if wins + losses > 0:
        test = scipy_stats.binomtest(wins, wins + losses, 0.5)
        assert p_value == pytest.approx(test.pvalue, rel=1e-9)


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [(5, 0, 0.0625), (4, 1, 0.375), (1, 4, 0.375), (2, 2, 1.0), (0, 0, 1.0)],
    ids=["all-wins", "one-loss", "one-win", "balanced-not-above-one", "no-discordant-pairs"],
)
def test_mcnemar_by_hand(wins, losses, expected):
    """5:0 is 2 * 1/32 = 0.0625; 4:1 is 2 * (1 + 5)/32 = 0.375; 2:2 is 2 * 11/16, capped at 1."""
    ours, baseline = as_pairs(both_right=1, wins=wins, losses=losses)
    assert paired_difference(ours, baseline, resamples=1).p_value == expected


def test_mcnemar_does_not_underflow_to_zero_or_overflow():
    """1,319 wins and no loss: 2 / 2**1319 is below the smallest float, 900 wins are not."""
    assert paired_difference([1] * 900, [0] * 900, resamples=1).p_value == 2.0**-899
    assert paired_difference([1] * 1319, [0] * 1319, resamples=1).p_value == 0.0


def test_no_p_value_where_one_score_is_a_half():
    assert paired_difference([1, 0.5], [0, 1]).p_value is None


# --- seeds ------------------------------------------------------------------------------------


def test_mean_over_seeds_by_hand():
    """Seed means 1, 1/2, 0: mean 1/2, variance (1/4 + 0 + 1/4) / 2 = 1/4, deviation 1/2."""
    result = mean_over_seeds([[1, 1], [0, 1], [0, 0]])
    assert (result.mean, result.standard_deviation) == (0.5, 0.5)
    assert (result.n_seeds, result.n_examples) == (3, 2)


def test_seeds_are_resampled():
    """Seeds 1 and 0 that agree on all examples: means 0, 1/2, 1 with chance 1/4, 1/2, 1/4."""
    per_seed = [[1, 1, 1], [0, 0, 0]]
    wide = mean_over_seeds(per_seed).interval
    narrow = mean_over_seeds(per_seed, level=0.4).interval
    assert (wide.low, wide.high) == (0.0, 1.0)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_examples_are_resampled():
    """Two seeds that agree on examples 1 and 0: the same distribution, from the examples."""
    per_seed = [[1, 0], [1, 0]]
    wide = mean_over_seeds(per_seed).interval
    narrow = mean_over_seeds(per_seed, level=0.4).interval
    assert (wide.low, wide.high) == (0.0, 1.0)
    assert (narrow.low, narrow.high) == (0.5, 0.5)


def test_one_seed_has_no_deviation_and_the_interval_of_its_examples():
    """The interval of one seed is the paired interval against a baseline of zeros."""
    scores = np.random.default_rng(5).integers(0, 2, 400).tolist()
    result = mean_over_seeds([scores], seed=1)
    alone = paired_difference(scores, [0] * 400, seed=2)
    assert result.standard_deviation is None
    assert result.mean == alone.difference
    assert result.interval.low == pytest.approx(alone.interval.low, abs=0.005)
    assert result.interval.high == pytest.approx(alone.interval.high, abs=0.005)


def test_copies_of_a_seed_add_no_certainty():
    """Five copies of 400 right/wrong answers are still 400 examples, not 2,000.

    One resampled mean has sigma sqrt(0.25 / 400) = 0.025, the interval a width of about 0.098;
    examples drawn anew for each seed would give 0.044.
    """
    scores = [0, 1] * 200
    copies = mean_over_seeds([scores] * 5)
    width = copies.interval.high - copies.interval.low
    assert copies.standard_deviation == 0.0
    assert width == pytest.approx(2 * 1.96 * 0.025, abs=0.01)


def test_two_level_interval_has_the_variance_of_both_levels():
    """Seed effects -0.1, 0, 0.1 on examples that alternate 0.2 and 0.8 (variance 0.09).

    The resampled mean has variance (0.02/3)/3 from seeds plus 0.09/100 from examples =
    0.002222 + 0.0009 = 0.003122, sigma 0.05588; a normal 95 % interval is 0.219 wide. Three
    seeds are lumpy, so 10 % are allowed; seeds alone give 0.185, examples alone 0.118.
    """
    examples_N = np.tile([0.2, 0.8], 50)
    result = mean_over_seeds([(examples_N + shift).tolist() for shift in (-0.1, 0.0, 0.1)])
    assert result.mean == pytest.approx(0.5)
    assert result.interval.high - result.interval.low == pytest.approx(0.219, rel=0.1)


def test_seed_summary_can_be_written_as_json():
    summary = json.loads(json.dumps(asdict(mean_over_seeds([[1, 0]]))))
    assert summary["standard_deviation"] is None


@pytest.mark.parametrize(
    ("per_seed", "message"),
    [
        ([], "no seeds"),
        ([[]], r"per_seed\[0\] is empty"),
        ([[1, 0], [1]], "same examples"),
        ([[1, 0], [1, float("nan")]], r"per_seed\[1\] holds NaN"),
    ],
    ids=["no-seeds", "no-examples", "ragged", "nan"],
)
def test_mean_over_seeds_refuses(per_seed, message):
    with pytest.raises(ValueError, match=message):
        mean_over_seeds(per_seed)
