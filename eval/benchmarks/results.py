"""What benchmarks read and write: stored answers, grades, and a result with measures.

A result has `ids` and, for each measure (eval/stats/measures.py), scores in the same order, so that
stages can be compared on the same examples without grading again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eval.stats.measures import Curve, Measure, Scored, ScoredMeasure, measure
from pipeline.rows.stored import AnswerRow, Grade, read_answers
from pipeline.steps.artifact import RESULT, write_json, write_rows

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext

GRADES = "grades.jsonl"


class Result(Scored):
    """`result.json` of a benchmark."""

    benchmark: str
    primary: str
    n: int
    counts: dict[str, int]


class CurvedResult(Result):
    """`result.json` of a benchmark that has charts of its own."""

    curves: dict[str, Curve]


def answers_to_grade(step: StepContext) -> Sequence[AnswerRow]:
    """The stored answers that a step grades."""
    return read_answers(step.input_folders()["answers"])


def cut_off(samples: Sequence[AnswerRow]) -> ScoredMeasure:
    """Return the share of stored answers that ran into the token limit."""
    return measure([not sample["finished"] for sample in samples])


def store(
    step: StepContext,
    *,
    grades: Sequence[Grade],
    measures: Mapping[str, Measure],
    counts: Mapping[str, int],
    curves: Mapping[str, Curve] | None = None,
) -> None:
    """Write grades.jsonl and result.json.

    Args:
        step: the running step.
        grades: one row per example: `id`, `verdict` (shown to users), and what it is based on.
        measures: by name; the first is the benchmark's main number, by which stages are compared.
        counts: outcome -> number of examples; they add up to all examples.
        curves: the data of the benchmark's charts, if it has any; see `curve`.

    Raises:
        ValueError: If the counts do not add up to the number of examples.
    """
    if sum(counts.values()) != len(grades):
        raise ValueError(f"outcomes {dict(counts)} do not add up to {len(grades)} examples")
    write_rows(step.directory / GRADES, grades)
    result: Result = {
        "benchmark": step.spec.kind,
        "primary": next(iter(measures)),
        "n": len(grades),
        "measures": dict(measures),
        "counts": dict(counts),
        "ids": [grade["id"] for grade in grades],
    }
    charts = {"curves": dict(curves)} if curves else {}
    write_json(step.directory / RESULT, {**result, **charts})
