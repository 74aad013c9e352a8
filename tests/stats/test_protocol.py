"""The simulation of a report's statistics: a cell of each table, with the goals it is held to."""

import numpy as np
import pytest
from conftest import benchmark_script

from eval.stats.power import CHANCE, SHARED, share_found

TRIALS = 400


@pytest.fixture(scope="module")
def protocol():
    return benchmark_script("protocol")


@pytest.mark.parametrize(("seeds", "scatter"), [(2, 4), (3, 2), (5, 0)])
def test_equal_arms_rarely_differ_and_intervals_hold(protocol, seeds, scatter):
    """At most 6 % and at least 93 %, with what 400 trials leave to chance (3 standard errors)."""
    found, held = protocol.compare(TRIALS, 600, seeds, scatter, points=0.0)
    assert found <= 0.06 + 0.036 and held >= 0.93 - 0.036
    assert found == pytest.approx(1 - held)


def test_five_points_are_found_more_often_with_more_seeds(protocol):
    power = [protocol.compare(TRIALS, 600, seeds, 1, points=5.0)[0] for seeds in (2, 3, 5)]
    assert power == sorted(power) and power[0] > 0.08 and power[-1] > 0.7


def test_seed_scatter_and_points_are_what_they_say(protocol):
    """4 points of scatter and 5 of difference, measured on many seeds of two arms."""
    rng, u = np.random.default_rng(0), protocol._seed_effect(4)
    shared = rng.standard_normal((1, 1, 1, 2000), dtype=np.float32) * protocol.DIFFICULTY
    shifts = np.array([0.0, protocol._shift(4, 5.0)])
    right = protocol._answers(rng, shared, shifts, 400, u)[0]
    assert 100 * right.mean(axis=-1).std(axis=-1) == pytest.approx([4, 4], abs=0.5)
    assert 100 * np.diff(right.mean(axis=(1, 2)))[0] == pytest.approx(5, abs=2.5)


@pytest.mark.parametrize(
    ("n", "seeds", "scatter", "points"),
    [(600, 3, 1, 5.0), (600, 5, 2, 5.0), (100, 3, 1, 0.0)],
)
def test_as_many_differences_are_found_as_in_the_simulation(protocol, n, seeds, scatter, points):
    """Within three standard errors of the simulation, and what its trials leave out."""
    found, _ = protocol.compare(1000, n, seeds, scatter, points)
    by_formula = share_found(points, n, seeds, scatter=scatter)
    assert by_formula == pytest.approx(found, abs=3 * (0.25 / 1000) ** 0.5)


def test_the_variances_are_those_of_the_simulated_arms(protocol):
    """Two arms of equal accuracy: by hand, over a grid of difficulties and tastes."""
    nodes, weights = protocol._NODES, protocol._WEIGHTS
    p = 1 / (1 + np.exp(-(protocol.DIFFICULTY * nodes[:, None] + protocol.TASTE * nodes)))
    by_difficulty = p @ weights
    assert 2 * (weights @ p**2 @ weights - weights @ by_difficulty**2) == pytest.approx(
        SHARED, abs=2e-4
    )
    assert 2 * (weights @ (p * (1 - p)) @ weights) == pytest.approx(CHANCE, abs=2e-4)
