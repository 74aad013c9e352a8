"""Copies of a model, on answers that are drawn here: copies do not differ significantly, damage is found."""

import numpy as np
import pytest
from conftest import benchmark_script

SEEDS, ROWS = 3, 120


@pytest.fixture(scope="module")
def protocol():
    return benchmark_script("copies")


def graded(chance_N, seed):
    """Graded answers of a model that is right on row n with chance_N[n]."""
    drawn_KN = np.random.default_rng(seed).random((2 * SEEDS, ROWS)) < chance_N
    return [
        {
            "ids": list(range(ROWS)),
            "measures": {"strict": {"unit": "%", "scores": [float(one) for one in drawn_N]}},
        }
        for drawn_N in drawn_KN
    ]


@pytest.fixture(scope="module")
def healthy():
    return graded(np.random.default_rng(0).beta(1, 2, ROWS), seed=1)


def counts_of(row):
    """Not significant, worse and better of a row of the table."""
    return [int(cell) for cell in row.strip("|").split("|")[-3:]]


def test_a_model_against_itself_does_not_differ_in_95_of_100(protocol, healthy):
    not_significant, worse, better = counts_of(protocol.row_of("itself", healthy, healthy, SEEDS))
    assert not_significant >= 95
    assert not_significant + worse + better == protocol.RESAMPLINGS


def test_a_damaged_model_is_worse(protocol, healthy):
    damaged = graded(np.random.default_rng(0).beta(1, 2, ROWS) / 4, seed=2)
    _, worse, better = counts_of(protocol.row_of("damaged", healthy, damaged, SEEDS))
    assert worse >= 95 and better == 0


def test_two_arms_of_one_model_share_no_answer(protocol, healthy):
    """Each row's six answers are dealt out, three to an arm, anew for every resampling."""

    def scores(arm):
        return np.array([one["measures"]["strict"]["scores"] for one in arm.values()])

    first, second = protocol.dealt(healthy, healthy, SEEDS, 0)
    assert first.keys() == second.keys() == set(range(SEEDS))
    all_of_them = scores(dict(enumerate(healthy))).sum(axis=0)
    assert (scores(first).sum(axis=0) + scores(second).sum(axis=0) == all_of_them).all()
    again, _ = protocol.dealt(healthy, healthy, SEEDS, 0)
    other, _ = protocol.dealt(healthy, healthy, SEEDS, 1)
    assert (scores(again) == scores(first)).all() and (scores(other) != scores(first)).any()
