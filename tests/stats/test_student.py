"""Student's t distribution against scipy."""

import math

import pytest
from scipy import stats as scipy_stats

from eval.stats.student import t_quantile, two_sided_t


@pytest.mark.parametrize("df", [1, 1.1, 1.3, 1.5, 2, 3.3, 7.5, 9.9, 10.1, 40, 60, 1318, 1e5])
def test_the_t_distribution_is_scipys(df):
    for t in (0.0, 0.3, 1.96, 4.303, 12.0):
        expected = 2 * scipy_stats.t.sf(t, df)
        assert two_sided_t(t, df) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    for level in (0.9, 0.95, 0.9929):
        assert t_quantile(df, level) == pytest.approx(scipy_stats.t.isf((1 - level) / 2, df))


def test_no_difference_and_an_endless_one_are_the_ends():
    assert two_sided_t(0.0, 3) == two_sided_t(math.nan, 3) == 1.0
    assert two_sided_t(math.inf, 3) == 0.0
