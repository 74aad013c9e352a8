"""Holm's adjustment, against statsmodels' published values worked by hand."""

import pytest

from eval.stats.holm import holm


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 (no less than 0.06), 0.5 x 1; in the order they were given."""
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])


def test_one_comparison_stays_and_none_exceeds_1():
    assert holm([0.04]) == [0.04]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
