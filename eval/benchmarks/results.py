"""What a benchmark reads and writes: stored answers, grades, and a result of measures.

A result holds `ids` and, for each measure (eval/stats/measures.py), scores in the same order, so
that stages can be compared on the same examples without grading again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.stats.measures import Measure, measure
from pipeline.rows.stored import AnswerRow, read_answers
from pipeline.steps.artifact import RESULT, write_json, write_rows

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext

GRADES = "grades.jsonl"
Grade = dict[str, Any]  # `id`, `verdict` (words for people), and what the verdict rests on


def answers_to_grade(step: StepContext) -> list[AnswerRow]:
    """Read the stored answers that a step grades."""
    return read_answers(step.input_folders()["answers"])


def cut_off(samples: Sequence[AnswerRow]) -> Measure:
    """Return the share of stored answers that ran into the token limit."""
    return measure([not sample["finished"] for sample in samples])


def store(
    step: StepContext,
    *,
    grades: Sequence[Grade],
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
        "benchmark": step.spec.kind,
        "primary": next(iter(measures)),
        "n": len(grades),
        "measures": dict(measures),
        "counts": dict(counts),
        "ids": [grade["id"] for grade in grades],
        **({"curves": dict(curves)} if curves else {}),
    }
    write_json(step.directory / RESULT, result)
