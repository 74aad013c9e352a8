"""Graders, result types and statistics: what turns stored samples into numbers."""

from __future__ import annotations

from typing import NamedTuple


class Benchmark(NamedTuple):
    """A benchmark: the task whose rows it grades, and the step function that grades answers."""

    task: str
    grader: str
    version: int  # raised when grading changes, so that stored answers are graded again


BENCHMARKS = {"gsm8k": Benchmark(task="gsm8k", grader="eval.gsm8k:grade_answers", version=1)}
