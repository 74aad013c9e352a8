"""TL;DR summaries: a judge compares the model's summary with the human one; also ROUGE.

Prompts are cut in `pipeline.data.tasks` (posts at their last newline that fits, to 512 tokens).
Answers of at most 53 tokens are sampled at temperature 0.01 (`eval.benchmarks.registry`), as in the
summarize-from-feedback work.

Decisions: (1) the judge sees the same prompt as the model, without its last line; (2) the win rate
is the mean preference over both orders, a tie counts half, and comparisons without a verdict are
counted and left out; (3) an empty summary is judged like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eval.benchmarks.results import answers_to_grade, cut_off, store
from eval.benchmarks.rouge import rouge_measures
from eval.benchmarks.types import Benchmark, JudgedOptions
from eval.judge.step import judge_comparisons, judged_grades, judged_measures
from eval.judge.types import Comparison
from pipeline.recipe.schema import Source
from pipeline.rows.stored import AnswerRow

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import JudgedGradeOptions


class TldrOptions(JudgedOptions):
    """Keys of `tldr`."""

    template: str = "tldr_dpo_concise"


BENCHMARK = Benchmark(
    run="eval.tldr:grade_answers",
    version=3,
    task="tldr",
    options=TldrOptions,
    hub=Source(source="vwxyzjn/summarize_from_feedback_tldr_3_filtered", split="test"),
    judged=True,
)


def grade_answers(step: StepContext[JudgedGradeOptions]) -> None:
    """Step: judge stored summaries against the human ones; writes grades.jsonl and result.json."""
    samples = answers_to_grade(step)
    judgement = judge_comparisons(step, [comparison_of(sample) for sample in samples])
    grades = judged_grades(samples, judgement)
    rouge, _ = rouge_measures(samples)
    if not rouge:
        step.warn("no ROUGE scores: no reference has a letter or digit")
    measures = {
        **judged_measures(judgement),
        **rouge,
        "cut off": cut_off(samples),
    }
    store(step, grades=grades, measures=measures, counts=judgement.counts)


def comparison_of(sample: AnswerRow) -> Comparison:
    """The human summary (a) and the model's (b) of one post."""
    post = sample["messages"][-1]["content"].rstrip().removesuffix("TL;DR:").rstrip()
    reference = sample["reference"]
    return Comparison(str(sample["id"]), post, reference, sample["answer"], reference)
