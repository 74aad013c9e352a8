"""ROUGE of stored answers against their references (eval/graders/rouge.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.benchmarks.results import answers_to_grade, cut_off, store
from eval.benchmarks.types import Benchmark
from eval.graders.rouge import MEASURES, f_measures
from eval.stats.measures import Measure, measure
from pipeline.errors import InputError
from pipeline.rows.stored import AnswerRow, Grade

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext


class RougeGrade(Grade):
    """F measures as fractions; None where ROUGE cannot read the reference."""

    rouge1: float | None
    rouge2: float | None
    rougeL: float | None


BENCHMARK = Benchmark(run="eval.rouge:grade_answers", version=2)


def grade_answers(step: StepContext) -> None:
    """Step: score stored answers against their references; writes grades.jsonl and result.json."""
    samples = answers_to_grade(step)
    measures, grades = rouge_measures(samples)
    if not measures:
        raise InputError("no reference has a letter or digit, so ROUGE cannot score these answers")
    measures["cut off"] = cut_off(samples)
    unread = sum(grade["rougeL"] is None for grade in grades)
    counts = {"scored": len(grades) - unread, "unscored": unread}
    # ROUGE-L comes first: it is the measure by which stages are compared.
    ordered = {"ROUGE-L": measures.pop("ROUGE-L"), **measures}
    store(step, grades=grades, measures=ordered, counts=counts)


def rouge_measures(
    samples: Sequence[AnswerRow],
) -> tuple[dict[str, Measure], list[RougeGrade]]:
    """Return ROUGE-1, -2 and -L over stored answers, and one grade per answer.

    There are no measures if ROUGE cannot read any reference.
    """
    scores = [f_measures(sample["answer"], sample["reference"]) for sample in samples]
    names = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    measures: dict[str, Measure] = {
        label: measure([None if score is None else score[name] for score in scores])
        for name, label in names.items()
        if any(score is not None for score in scores)
    }
    grades: list[RougeGrade] = []
    for sample, score in zip(samples, scores, strict=True):
        verdict = (
            "reference unreadable" if score is None else f"ROUGE-L {100 * score['rougeL']:.1f}"
        )
        found = score or dict.fromkeys(MEASURES)
        grades.append(
            {
                "id": sample["id"],
                "verdict": verdict,
                "rouge1": found["rouge1"],
                "rouge2": found["rouge2"],
                "rougeL": found["rougeL"],
            }
        )
    return measures, grades
