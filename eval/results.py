"""What a benchmark's grading writes: one score an example for each measure, values and intervals.

A result holds `ids` and, for each measure, scores in the same order: shares between 0 and 1, null
where an example could not be scored. Values are in percent unless a measure names another unit. So
stages can be compared on the same examples without grading again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.types import Interval
from pipeline.artifact import RESULT, SAMPLES, read_rows, write_json, write_rows

if TYPE_CHECKING:
    from pipeline.step import StepRun

GRADES = "grades.jsonl"
Measure = dict[str, Any]


def read_answers(step: StepRun) -> list[dict[str, Any]]:
    """Read the stored answers that a step grades."""
    return read_rows(step.input_folders()["answers"] / SAMPLES)


def scale_of(unit: str) -> int:
    """What scores are multiplied by to be values: those in percent are stored as shares."""
    return 100 if unit == "%" else 1


def measure(scores: Sequence[float | None], *, unit: str = "%", better: str = "higher") -> Measure:
    """Return a measure: the mean score with its 95 % interval, and the scores.

    The interval is Wilson's where every score is 0 or 1, else a bootstrap over examples.

    Args:
        scores: One an example, None where it could not be scored; shares where the unit is "%".
        unit: "%" or the unit of the scores.
        better: whether "higher" or "lower" numbers are.

    Raises:
        ValueError: If there is no score at all.
    """
    from eval.stats import mean_over_seeds, wilson_interval

    known = [float(score) for score in scores if score is not None]
    if not known:
        raise ValueError("no example has a score: an empty evaluation is an error, not 0.0")
    if unit == "%" and all(score in (0.0, 1.0) for score in known):
        interval = wilson_interval(int(sum(known)), len(known))
    else:
        interval = mean_over_seeds([known]).interval
    scale = scale_of(unit)
    value = sum(known) / len(known)
    return {
        "value": scale * value,
        "low": scale * interval.low,
        "high": scale * interval.high,
        "n": len(known),
        "unit": unit,
        "scores": list(scores),
        **({} if better == "higher" else {"better": better}),
    }


def cut_off(samples: Sequence[Mapping[str, Any]]) -> Measure:
    """Return the share of stored answers that ran into the token limit."""
    return measure([not sample["finished"] for sample in samples])


def replicated(value: float, interval: Interval | None, n: int, replicates: list[float]) -> Measure:
    """Return a measure that is no mean of scores, in percent.

    `replicates` are its values on bootstrap resamples of the examples; two results on the same
    examples have the same resamples, so their differences are paired.
    """
    low, high = (value, value) if interval is None else (interval.low, interval.high)
    unit = {"unit": "%", "replicates": replicates}
    return {"value": value, "low": low, "high": high, "n": n, **unit}


def store(
    step: StepRun,
    *,
    grades: list[dict[str, Any]],
    measures: Mapping[str, Measure],
    counts: Mapping[str, int],
    curves: Mapping[str, Any] | None = None,
) -> None:
    """Write grades.jsonl and result.json.

    Args:
        step: the running step.
        grades: one row an example: `id`, `verdict` (words for people), and what it rests on.
        measures: by name; the first is the benchmark's own number, which stages are compared by.
        counts: outcome -> examples; they add up to the number of examples.
        curves: what the benchmark's charts are drawn from, if it has any; see `curve`.

    Raises:
        ValueError: If the counts do not add up.
    """
    if sum(counts.values()) != len(grades):
        raise ValueError(f"outcomes {dict(counts)} do not add up to {len(grades)} examples")
    write_rows(step.directory / GRADES, grades)
    result = {
        "benchmark": step.kind,
        "primary": next(iter(measures)),
        "n": len(grades),
        "measures": dict(measures),
        "counts": dict(counts),
        "ids": [grade["id"] for grade in grades],
        **({"curves": dict(curves)} if curves else {}),
    }
    write_json(step.directory / RESULT, result)


def curve(ids: Sequence[int], measures: Mapping[str, Measure], **more: Any) -> dict[str, Any]:
    """Return one curve of a result: a measure for each place on the x axis, and its own examples.

    It is shaped as a result is, so that seeds and stages are compared point by point alike.
    """
    return {"ids": list(ids), "measures": dict(measures), **more}
