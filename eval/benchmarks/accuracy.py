"""Accuracy: the share of stored answers that the task's own grader accepts.

Answers cut at the token limit are graded like the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eval.benchmarks.results import answers_to_grade, cut_off, store
from eval.benchmarks.types import Benchmark
from eval.stats.measures import measure
from pipeline.data.tasks import task_named
from pipeline.errors import Problem
from pipeline.rows.stored import Grade

if TYPE_CHECKING:
    from pipeline.recipe.schema import Recipe
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import TaskGradeOptions


def _check(recipe: Recipe) -> list[Problem]:
    if task_named(recipe.task).grade is not None:
        return []
    message = f"accuracy needs a task that grades answers; {recipe.task} does not, use rouge"
    return [Problem("evaluate", message)]


BENCHMARK = Benchmark(run="eval.benchmarks.accuracy:grade_answers", by_task=True, check=_check)


def grade_answers(step: StepContext[TaskGradeOptions]) -> None:
    """Step: grade stored answers with the task's grader; writes grades.jsonl and result.json."""
    samples = answers_to_grade(step)
    grade = task_named(step.options["task"]).grade
    assert grade is not None  # the recipe has been checked
    right = [grade(sample["answer"], sample["reference"]) for sample in samples]
    refused = sum(not grade(sample["reference"], sample["reference"]) for sample in samples)
    if refused:
        step.warn(
            f"the task's grade function rejects {refused} of {len(samples)} references, so answers "
            "equal to them count as wrong; fix it, or those rows"
        )
    grades: list[Grade] = [
        {"id": sample["id"], "verdict": "right" if is_right else "wrong"}
        for sample, is_right in zip(samples, right, strict=True)
    ]
    measures = {"accuracy": measure(right), "cut off": cut_off(samples)}
    store(
        step,
        grades=grades,
        measures=measures,
        counts={"right": sum(right), "wrong": len(right) - sum(right)},
    )
