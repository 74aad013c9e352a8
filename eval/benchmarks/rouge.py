"""ROUGE of stored answers against their references (eval/graders/rouge.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eval.benchmarks.results import Grade, answers_to_grade, cut_off, store
from eval.benchmarks.types import Benchmark
from eval.graders.rouge import MEASURES, f_measures
from eval.stats.measures import Measure, measure
from pipeline.errors import InputError
from pipeline.rows.stored import AnswerRow

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext


BENCHMARK = Benchmark(run="eval.rouge:grade_answers", version=2)


def grade_answers(step: StepContext) -> None:
    """Step: score stored answers against their references; writes grades.jsonl and result.json."""
    samples = answers_to_grade(step)
    measures, grades = rouge_measures(samples)
    if not measures:
        raise InputError(
            "no reference holds a letter or digit, so ROUGE cannot score these answers"
        )
    measures["cut off"] = cut_off(samples)
    unread = sum(grade["rougeL"] is None for grade in grades)
    counts = {"scored": len(grades) - unread, "unscored": unread}
    # ROUGE-L is the one that stages are compared by.
    ordered = {"ROUGE-L": measures.pop("ROUGE-L"), **measures}
    store(step, grades=grades, measures=ordered, counts=counts)


def rouge_measures(
    samples: list[AnswerRow],
) -> tuple[dict[str, Measure], list[Grade]]:
    """Return ROUGE-1, -2 and -L over stored answers, and one grade an answer.

    Where ROUGE can read no reference there are no measures.
    """
    scores = [f_measures(sample["answer"], sample["reference"]) for sample in samples]
    names = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    measures = {
        label: measure([None if one is None else one[name] for one in scores])
        for name, label in names.items()
        if any(one is not None for one in scores)
    }
    grades: list[Grade] = []
    for sample, one in zip(samples, scores, strict=True):
        words = "reference unreadable" if one is None else f"ROUGE-L {100 * one['rougeL']:.1f}"
        found: dict[str, Any] = dict.fromkeys(MEASURES) if one is None else one
        grades.append({"id": sample["id"], "verdict": words, **found})
    return measures, grades
