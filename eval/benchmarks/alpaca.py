"""AlpacaEval 2: stored answers judged against the baseline's, and length-controlled win rates."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypedDict

from eval.benchmarks.alpaca_files import (
    Entry,
    read_difficulties,
    read_gamed,
    read_model_outputs,
    write_annotations,
    write_model_outputs,
)
from eval.benchmarks.results import answers_to_grade, cut_off, store
from eval.benchmarks.types import Benchmark, JudgedOptions
from eval.graders.alpaca import RESAMPLES, score, why_not_controlled
from eval.graders.length_control import WinRate
from eval.judge.types import Comparison
from eval.stats.measures import Measure, measure, replicated
from pipeline.errors import InputError
from pipeline.recipe.schema import AnySource, Judge, Source
from pipeline.rows.stored import AnswerRow
from pipeline.steps.identity import local_file

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import JudgedGradeOptions


_HUB = "tatsu-lab/alpaca_eval"


class Paired(TypedDict):
    """The baseline's and the model's answer to one instruction, as AlpacaEval calls them."""

    dataset: str
    instruction: str
    output_1: str
    generator_1: str
    output_2: str


class AlpacaOptions(JudgedOptions):
    """`data` has the baseline's answers, in AlpacaEval's order; the CSV files are AlpacaEval's.

    If `gamed` or `difficulty` is null, there is no length-controlled win rate.
    """

    template: str = "alpaca_eval_2"
    difficulty: AnySource | None = Source(source=_HUB, file="df_gamed.csv")
    gamed: AnySource | None = Source(source=_HUB, file="df_gamed.csv")


def _files(options: AlpacaOptions, test: Source) -> dict[str, Source]:
    """AlpacaEval's files: the baseline's answers to all instructions, and two tables."""
    files = {"difficulty": options.difficulty, "gamed": options.gamed}
    baseline = test.model_copy(update={"limit": None, "skip": 0})
    given = {role: source for role, source in files.items() if source is not None}
    return {"baseline": baseline, **given}


BENCHMARK = Benchmark(
    run="eval.alpaca:grade_answers",
    version=4,
    task="alpaca",
    options=AlpacaOptions,
    hub=Source(source=_HUB, file="alpaca_eval_gpt4_baseline.json"),
    judged=True,
    files=_files,
)


def grade_answers(step: StepContext[JudgedGradeOptions]) -> None:
    """Step: judge stored answers against the baseline's and score them.

    Writes model_outputs.json and annotations.json for the official tool, and grades.jsonl and
    result.json.

    Raises:
        InputError: If the baseline, difficulties or gamed rows cannot be read or do not match.
    """
    from eval.judge.step import judge_comparisons, judged_grades, judged_measures

    samples = answers_to_grade(step)
    baseline = read_model_outputs(local_file(step.source("baseline")))
    tables = _tables(
        step, baseline
    )  # read before anything is asked, because a judge may cost money
    known = {row["instruction"]: row for row in baseline}
    pairs = [_paired(sample, known[sample["messages"][-1]["content"]]) for sample in samples]
    comparisons = [
        Comparison(
            str(number), row["instruction"], row["output_1"], row["output_2"], row["output_1"]
        )
        for number, row in enumerate(pairs)
    ]
    judgement = judge_comparisons(step, comparisons)
    model = f"{step.stage}-seed{step.seed}"
    settings = Judge.model_validate(step.runtime_options["judge"])
    annotations = [
        {
            **row,
            "generator_2": model,
            "annotator": " ".join(filter(None, ("bashrac", settings.engine, settings.model))),
            "preference": None if verdict.preference is None else 1 + verdict.preference,
        }
        for row, verdict in zip(pairs, judgement.verdicts, strict=True)
    ]
    write_annotations(step.directory / "annotations.json", annotations)
    outputs = [
        {
            "dataset": row["dataset"],
            "instruction": row["instruction"],
            "output": row["output_2"],
            "generator": model,
        }
        for row in pairs
    ]
    write_model_outputs(step.directory / "model_outputs.json", outputs)
    if len(samples) < len(baseline):
        step.warn(
            f"judged on {len(samples)} of {len(baseline)} instructions: not comparable with "
            "published win rates"
        )
    result = score(annotations, *tables, resamples=RESAMPLES)
    judged = judged_measures(judgement)
    judged["win rate"]["standard_error"] = result.standard_error
    store(
        step,
        grades=judged_grades(samples, judgement),
        measures={
            **_controlled(step, result),
            **judged,
            "cut off": cut_off(samples),
            "length": measure([len(row["output_2"]) for row in pairs], unit="characters"),
        },
        counts=judgement.counts,
    )


def _paired(sample: AnswerRow, baseline: Entry) -> Paired:
    return {
        "dataset": str(baseline.get("dataset", "")),
        "instruction": baseline["instruction"],
        "output_1": baseline["output"],
        "generator_1": str(baseline.get("generator", "baseline")),
        "output_2": sample["answer"],
    }


def _tables(
    step: StepContext, baseline: list[Entry]
) -> tuple[dict[str, float] | None, list[tuple[float, ...]] | None]:
    """Read difficulties and gamed rows, if the step has them.

    Raises:
        InputError: If they do not match the baseline's instructions, or an instruction is repeated.
    """
    instructions = [row["instruction"] for row in baseline]
    twice = [text for text, times in Counter(instructions).items() if times > 1]
    if twice:
        raise InputError(f"the baseline has the instruction {twice[0][:80]!r} twice: keep one")
    difficulties = gamed = None
    if "difficulty" in step.locations:
        difficulties = read_difficulties(local_file(step.source("difficulty")), instructions)
    if "gamed" in step.locations:
        gamed = read_gamed(local_file(step.source("gamed")))
    return difficulties, gamed


def _controlled(step: StepContext, result: WinRate) -> dict[str, Measure]:
    """Return the length-controlled win rate as a measure; if there is none, warn why."""
    reason = why_not_controlled(result)
    if reason is not None:
        step.warn(f"no length-controlled win rate: {reason}")
        return {}
    assert result.lc_win_rate is not None
    controlled = replicated(
        result.lc_win_rate, result.lc_interval, result.n, list(result.lc_replicates)
    )
    controlled["C"] = result.C
    controlled["standard_error"] = result.lc_standard_error
    return {"LC win rate": controlled}
