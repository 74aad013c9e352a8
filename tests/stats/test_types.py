"""Outcomes, intervals and tallies."""

import json
from dataclasses import FrozenInstanceError, asdict

import pytest
from conftest import imported_by

from eval.stats.types import Interval, Outcome, Tally


def test_outcomes_are_their_strings():
    assert [str(outcome) for outcome in Outcome] == [
        "correct",
        "wrong",
        "unparsed",
        "truncated",
        "errored",
    ]
    assert f"{Outcome.UNPARSED}" == "unparsed"
    assert json.dumps([Outcome.CORRECT]) == '["correct"]'


def test_tally_counts_every_outcome():
    """Two correct, one each of the others: n = 6."""
    outcomes = [*Outcome, Outcome.CORRECT]
    assert Tally.count(outcomes) == Tally(
        n=6, correct=2, wrong=1, unparsed=1, truncated=1, errored=1
    )


def test_tally_counts_values_read_back_from_json():
    tally = Tally.count(json.loads('["correct", "truncated"]'))
    assert (tally.n, tally.correct, tally.truncated) == (2, 1, 1)


def test_accuracy_is_over_all_examples_not_over_parsed_ones():
    """One of four is correct, 1/4; over the two parsed ones it would be 1/2."""
    tally = Tally.count(["correct", "wrong", "unparsed", "truncated"])
    assert tally.accuracy == 0.25


def test_tally_survives_json():
    tally = Tally.count(["correct", "errored"])
    assert Tally(**json.loads(json.dumps(asdict(tally)))) == tally


def test_empty_tally_is_an_error():
    with pytest.raises(ValueError, match="empty evaluation is an error"):
        Tally.count([])


def test_unknown_outcome_is_an_error():
    with pytest.raises(ValueError, match="skipped"):
        Tally.count(["correct", "skipped"])


@pytest.mark.parametrize("n", [2, 4], ids=["too-few", "too-many"])
def test_counts_must_add_up(n):
    with pytest.raises(ValueError, match=f"add up to 3, not n={n}"):
        Tally(n=n, correct=1, wrong=1, unparsed=1, truncated=0, errored=0)


def test_negative_count_cannot_hide_in_the_sum():
    """2 + (-1) adds up to n = 1 all the same."""
    with pytest.raises(ValueError, match="negative"):
        Tally(n=1, correct=2, wrong=-1, unparsed=0, truncated=0, errored=0)


def test_tally_is_frozen():
    tally = Tally.count(["correct"])
    with pytest.raises(FrozenInstanceError):
        tally.correct = 0  # pyright: ignore[reportAttributeAccessIssue]


def test_interval_defaults_to_95_percent():
    assert asdict(Interval(0.25, 0.5)) == {"low": 0.25, "high": 0.5, "level": 0.95}


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.5, 0.25), (float("nan"), 1.0), (0.0, float("nan"))],
    ids=["swapped", "nan-low", "nan-high"],
)
def test_interval_ends_must_be_in_order(low, high):
    with pytest.raises(ValueError, match="not in order"):
        Interval(low, high)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0], ids=["zero", "one", "percent"])
def test_interval_level_is_a_fraction(level):
    with pytest.raises(ValueError, match="level is"):
        Interval(0.0, 1.0, level=level)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("eval.stats.types", ["numpy", "scipy", "torch", "datasets", "evaluate"]),
        ("eval.graders.gsm8k", ["numpy", "scipy", "torch", "datasets", "evaluate"]),
        ("eval.stats.seeds", ["scipy", "statsmodels", "torch", "datasets", "evaluate"]),
    ],
    ids=["types", "gsm8k", "stats"],
)
def test_modules_are_light_at_import(module, unwanted):
    assert not set(unwanted) & imported_by(module)
