"""A measure: one score per example, their mean and its interval.

Scores are fractions between 0 and 1, null for an example that could not be scored. Values are in
percent unless a measure names another unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from eval.stats.types import Interval


class _Value(TypedDict):
    value: float
    low: float
    high: float
    n: int
    unit: str
    standard_error: NotRequired[float | None]


class ScoredMeasure(_Value):
    """A mean of scores: see `measure`."""

    scores: list[float | None]
    better: NotRequired[str]
    verdicts: NotRequired[bool]


class ReplicatedMeasure(_Value):
    """A value that is no mean of scores: see `replicated`. `C` is of a length-controlled one."""

    replicates: list[float]
    C: NotRequired[float | None]


Measure = ScoredMeasure | ReplicatedMeasure


class Scored(TypedDict):
    """What a result and a curve have in common: measures of the same examples, by name."""

    ids: list[int]
    measures: dict[str, Measure]


class Curve(Scored):
    """The data of a chart: a measure for each place on the x axis. `of`: what is measured."""

    of: NotRequired[str]


def scale_of(unit: str) -> int:
    """The factor from scores to values: percentages are stored as fractions."""
    return 100 if unit == "%" else 1


def measure(
    scores: Sequence[float | None],
    *,
    unit: str = "%",
    better: str = "higher",
    verdicts: bool = False,
) -> ScoredMeasure:
    """Return a measure: the mean score with its 95 % interval, and the scores.

    The interval is Wilson's if every score is 0 or 1, otherwise that of a t test over examples.

    Args:
        scores: One per example, None if it could not be scored; fractions if the unit is "%".
        unit: "%" or the unit of the scores.
        better: Whether "higher" or "lower" values are better.
        verdicts: Whether scores are a judge's verdicts (`eval.stats.seeds.mean_over_seeds`).

    Raises:
        ValueError: If no example has a score.
    """
    from eval.stats.intervals import wilson_interval
    from eval.stats.seeds import mean_over_seeds

    known = [float(score) for score in scores if score is not None]
    if not known:
        raise ValueError("no example has a score: an empty evaluation is an error, not 0.0")
    interval: Any
    if is_right_or_wrong(known, unit):
        interval = wilson_interval(int(sum(known)), len(known))
    else:
        interval = mean_over_seeds([known], verdicts=verdicts, shares=unit == "%")
    scale = scale_of(unit)
    value = sum(known) / len(known)
    found: ScoredMeasure = {
        "value": scale * value,
        "low": scale * interval.low,
        "high": scale * interval.high,
        "n": len(known),
        "unit": unit,
        "scores": list(scores),
    }
    if better != "higher":
        found["better"] = better
    if verdicts:
        found["verdicts"] = True
    return found


def is_right_or_wrong(scores: Sequence[float], unit: str) -> bool:
    """Whether all scores are 0 or 1."""
    return unit == "%" and all(score in (0.0, 1.0) for score in scores)


def replicated(
    value: float, interval: Interval | None, n: int, replicates: list[float]
) -> ReplicatedMeasure:
    """Return a measure that is not a mean of scores, in percent.

    `replicates` are its values on bootstrap resamples of the examples. Results on the same examples
    share the resamples, so their differences are paired.
    """
    low, high = (value, value) if interval is None else (interval.low, interval.high)
    return {
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "unit": "%",
        "replicates": replicates,
    }


def curve(ids: Sequence[int], measures: Mapping[str, Measure]) -> Curve:
    """Return a curve of a result: a measure for each x value, and the ids of its examples.

    It has the structure of a result, so that seeds and stages are compared at each point as there.
    """
    return {"ids": list(ids), "measures": dict(measures)}
