"""GSM8K: stored solutions graded by their final number, strict and flexible.

With `samples: n` each question is answered n times at the benchmark's temperature, and the measures
are pass@k for k = 1, 2, 4, ... n: the chance that at least one of k answers is right (strict),
estimated without bias from the c right ones of n as 1 - C(n - c, k) / C(n, k) (Chen et al. 2021,
arXiv 2107.03374, equation 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from math import comb
from operator import itemgetter
from typing import TYPE_CHECKING, Literal, TypedDict

from pydantic import Field

from eval.benchmarks.results import answers_to_grade, cut_off, store
from eval.benchmarks.types import Benchmark, Options
from eval.stats.measures import Measure, measure
from eval.stats.types import Outcome, Tally
from pipeline.errors import Problem
from pipeline.recipe.schema import AnySource, Recipe, Source
from pipeline.rows.stored import AnswerRow, Grade

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext


_BOTH: tuple[Literal["strict"], Literal["flexible"]] = ("strict", "flexible")
_LM_EVAL: tuple[Literal["lm-eval strict"], Literal["lm-eval flexible"]] = (
    "lm-eval strict",
    "lm-eval flexible",
)
_ByLmEval = TypedDict("_ByLmEval", {"lm-eval strict": bool, "lm-eval flexible": bool})


class SampledGrade(Grade):
    """Of a question with several answers."""

    strict: list[str]


class Gsm8kGrade(Grade, _ByLmEval):
    """Both outcomes, as ours and as those of lm-eval, which knows right and wrong only."""

    truncated: bool
    strict: str
    flexible: str


_TRAIN = Source(source="openai/gsm8k", name="main", split="train")


class Gsm8kOptions(Options):
    """`few_shot` solved questions from `shots` precede each one, in lm-eval's plain format.

    `samples` answers are drawn to each.
    """

    few_shot: int = Field(default=0, ge=0)
    shots: AnySource | None = None
    samples: int = Field(default=1, ge=1)


def _shots(recipe: Recipe, options: Gsm8kOptions) -> Source | None:
    """The solved questions before each question: from the recipe's training rows, or the hub."""
    if not options.few_shot:
        return None
    own = recipe.data.train if recipe.task == "gsm8k" else None
    source = options.shots or own or _TRAIN
    return source.model_copy(update={"limit": options.few_shot})


def _check(recipe: Recipe) -> list[Problem]:
    options = recipe.benchmarks.get("gsm8k") or Gsm8kOptions()
    if options.samples == 1 or options.temperature:
        return []
    message = "are all the same at temperature 0; set benchmarks.gsm8k.temperature, such as 0.7"
    return [Problem("benchmarks.gsm8k.samples", message)]


BENCHMARK = Benchmark(
    run="eval.gsm8k:grade_answers",
    version=3,
    task="gsm8k",
    options=Gsm8kOptions,
    hub=Source(source="openai/gsm8k", name="main", split="test"),
    shots=_shots,
    check=_check,
)


def grade_answers(step: StepContext) -> None:
    """Step: grade stored answers, strict and flexible; writes grades.jsonl and result.json."""
    samples = answers_to_grade(step)
    grades = [_grade_sample(sample) for sample in samples]
    if len({sample["id"] for sample in samples}) < len(samples):
        _store_several(step, grades)
        return
    measures: dict[str, Measure] = {
        how: measure([row[how] == Outcome.CORRECT.value for row in grades]) for how in _BOTH
    }
    measures["cut off"] = cut_off(samples)
    if samples[0].get("few_shot"):
        for how in _LM_EVAL:
            measures[how] = measure([row[how] for row in grades])
    counts = asdict(Tally.count(row["strict"] for row in grades))
    del counts["n"]
    store(step, grades=grades, measures=measures, counts=counts)


def _store_several(step: StepContext, grades: Sequence[Gsm8kGrade]) -> None:
    """Write grades and result of several answers per question; answers are in row order."""
    by_question = [list(group) for _, group in groupby(grades, key=itemgetter("id"))]
    right = [
        sum(one["strict"] == Outcome.CORRECT.value for one in answers) for answers in by_question
    ]
    count = len(by_question[0])
    sizes = [2**power for power in range(count.bit_length()) if 2**power < count] + [count]
    measures: dict[str, Measure] = {
        f"pass@{k}": measure([pass_at(k, count, found) for found in right]) for k in sizes
    }
    cut = [sum(one["truncated"] for one in answers) / count for answers in by_question]
    solved = {
        "solved always": sum(found == count for found in right),
        "sometimes": sum(0 < found < count for found in right),
        "never": right.count(0),
    }
    store(
        step,
        grades=[
            SampledGrade(
                id=answers[0]["id"],
                verdict=f"{found} of {count} correct",
                strict=[one["strict"] for one in answers],
            )
            for answers, found in zip(by_question, right, strict=True)
        ],
        measures=measures | {"cut off": measure(cut)},
        counts=solved,
    )


def pass_at(k: int, samples: int, right: int) -> float:
    """The chance that at least one of k answers is right, given how many of all samples are."""
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def _grade_sample(sample: AnswerRow) -> Gsm8kGrade:
    # Imported here because compiling its patterns takes 20 ms, which `plan` and `report` can skip.
    from eval.graders.gsm8k import grade, lm_eval_correct

    answer, reference, truncated = sample["answer"], sample["reference"], not sample["finished"]
    ours = {how: grade(answer, reference, how=how, truncated=truncated).value for how in _BOTH}
    return {
        "id": sample["id"],
        "verdict": ours["strict"],
        "truncated": truncated,
        "strict": ours["strict"],
        "flexible": ours["flexible"],
        "lm-eval strict": lm_eval_correct(answer, reference, how="strict"),
        "lm-eval flexible": lm_eval_correct(answer, reference, how="flexible"),
    }
