"""Wilson and McNemar against scipy, statsmodels and cases that can be worked out by hand."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar

from eval.stats.intervals import mcnemar_exact, wilson_interval

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


# --- McNemar ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(wins=st.integers(0, 300), losses=st.integers(0, 300))
@example(wins=0, losses=0)
@example(wins=1, losses=0)
@example(wins=150, losses=150)
@example(wins=600, losses=719)
def test_mcnemar_equals_scipy_and_statsmodels(wins, losses):
    p_value = mcnemar_exact(wins, losses)
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
    assert mcnemar_exact(wins, losses) == expected


def test_mcnemar_does_not_underflow_to_zero_or_overflow():
    """1,319 wins and no loss: 2 / 2**1319 is below the smallest float, 900 wins are not."""
    assert mcnemar_exact(900, 0) == 2.0**-899
    assert mcnemar_exact(1319, 0) == 0.0
