"""GSM8K: stored solutions graded by their final number, strict and flexible."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Literal, TypedDict

from pydantic import Field

from eval.benchmarks.results import answers_to_grade, cut_off, store
from eval.benchmarks.types import Benchmark, Options
from eval.stats.measures import Measure, measure
from eval.stats.types import Outcome, Tally
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


class Gsm8kGrade(Grade, _ByLmEval):
    """Both outcomes, as ours and as those of lm-eval, which knows right and wrong only."""

    truncated: bool
    strict: str
    flexible: str


_TRAIN = Source(source="openai/gsm8k", name="main", split="train")


class Gsm8kOptions(Options):
    """`few_shot` solved questions from `shots` precede each one, in lm-eval's plain format."""

    few_shot: int = Field(default=0, ge=0)
    shots: AnySource | None = None


def _shots(recipe: Recipe, options: Gsm8kOptions) -> Source | None:
    """The solved questions before each question: from the recipe's training rows, or the hub."""
    if not options.few_shot:
        return None
    own = recipe.data.train if recipe.task == "gsm8k" else None
    source = options.shots or own or _TRAIN
    return source.model_copy(update={"limit": options.few_shot})


BENCHMARK = Benchmark(
    run="eval.gsm8k:grade_answers",
    version=3,
    task="gsm8k",
    options=Gsm8kOptions,
    hub=Source(source="openai/gsm8k", name="main", split="test"),
    shots=_shots,
)


def grade_answers(step: StepContext) -> None:
    """Step: grade stored answers, strict and flexible; writes grades.jsonl and result.json."""
    samples = answers_to_grade(step)
    grades = [_grade_sample(sample) for sample in samples]
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
