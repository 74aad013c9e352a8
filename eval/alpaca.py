"""AlpacaEval 2: from a judge's replies or official annotations to win rates.

A preference is a number in [1, 2]: 1 where the baseline's answer is better, 2 where the model's.
Decided here:

1. Rows find their difficulty by instruction text. The official tool looks it up by position, which
   is wrong from the first missing row on.
2. Cross-validation depends on the order of rows, so `score` puts them in the order of the
   difficulties first: files with the same rows give the same number.
3. `preference_from_logprobs` reads official replies by the official rule, under which a label that
   is not listed is impossible. Our own judges are read by a stricter one (`eval.judge_openai`).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from eval.alpaca_files import (
    read_annotations,
    read_difficulties,
    read_gamed,
    read_model_outputs,
    write_annotations,
    write_model_outputs,
)
from eval.judgement import Comparison
from eval.length_control import WinRate, length_controlled_win_rate
from eval.results import Measure, cut_off, measure, read_answers, replicated, store
from pipeline.errors import InputError
from pipeline.identity import local_file

if TYPE_CHECKING:
    from pipeline.step import StepRun

__all__ = [
    "OfficialReading",
    "WinRate",
    "length_controlled_win_rate",
    "official_order_is_flipped",
    "preference_from_logprobs",
    "read_annotations",
    "read_difficulties",
    "read_gamed",
    "read_model_outputs",
    "score",
    "write_annotations",
    "write_model_outputs",
]
FEWEST_CONTROLLED = 50
RESAMPLES = 1000  # of the interval of the length-controlled win rate: two seconds


class OfficialReading(NamedTuple):
    """A preference in [1, 2], or None and the reason; mass is the probability of both labels."""

    preference: float | None
    reason: str | None
    mass: float


def official_order_is_flipped(instruction: str) -> bool:
    """Return whether the official tool shows the judge the model's answer first, as "m".

    Its coin is Python's generator, seeded with the instruction and its annotator's seed, 0.
    """
    return random.Random(f"is_switched_outputs{instruction}0").random() >= 0.5


def preference_from_logprobs(
    completion: Any, *, flipped: bool = False, labels: tuple[str, str] = ("m", "M")
) -> OfficialReading:
    """Read a preference off the log-probabilities of the judge's first token.

    The preference is 1 + P(label of the answer shown second), normalised over the two labels. A
    label that is not among the top tokens counts as impossible, as in the official tool; the
    verdict's `mass` tells how much of the distribution was read. No label is no preference.

    Args:
        completion: A choice of the OpenAI chat API, as AlpacaEval stores it in `raw_completion`.
        flipped: Whether the model's answer was shown first; `official_order_is_flipped` knows for
            official annotations.
        labels: Tokens for the answers shown first and second.

    Returns:
        The verdict on baseline (1) against model (2), whichever was shown first.
    """
    try:
        top = completion["logprobs"]["content"][0]["top_logprobs"]
        found = {entry["token"]: float(entry["logprob"]) for entry in top}
    except (KeyError, IndexError, TypeError, ValueError):
        reason = "no log-probabilities in the reply: the server left them out"
        return OfficialReading(None, reason, 0.0)
    # Rounding may leave a certain token a little above 0; NaN compares as false.
    if not all(logprob <= 0.01 for logprob in found.values()):
        return OfficialReading(None, "the reply's numbers are no log-probabilities", 0.0)
    first, second = (math.exp(found.get(label, -math.inf)) for label in labels)
    if first + second == 0:
        reason = f"neither {labels[0]!r} nor {labels[1]!r} among the {len(found)} top tokens"
        return OfficialReading(None, f"{reason}: ask for 20 top_logprobs", 0.0)
    share = second / (first + second)
    return OfficialReading(2.0 - share if flipped else 1.0 + share, None, first + second)


def score(
    annotations: Iterable[Mapping[str, Any]],
    difficulties: Mapping[str, float] | None,
    gamed: Sequence[Sequence[float]] | None = None,
    C: float | None = None,
    *,
    resamples: int = 0,
) -> WinRate:
    """Score the annotations of one model, all or some of the instructions in any order.

    Args:
        annotations: Entries as `read_annotations` returns them; a preference of 0, a tie in older
            files, counts as 1.5.
        difficulties: Difficulties by instruction text; None gives the raw win rate alone.
        gamed: As for `length_controlled_win_rate`.
        C: As there.
        resamples: As there.

    Raises:
        ValueError: If an instruction is there twice or has no difficulty, entries are of several
            models, baselines or judges, or none is judged.
    """
    rows = list(annotations)
    for field in ("generator_1", "generator_2", "annotator"):
        names = {str(row.get(field)) for row in rows}
        if len(names) > 1:
            raise ValueError(f"{field} has several values: {sorted(names)}; score one at a time")
    for instruction, times in Counter(row["instruction"] for row in rows).items():
        if times > 1:
            raise ValueError(f"{times} entries have the instruction {instruction[:80]!r}: keep one")
        if difficulties is not None and instruction not in difficulties:
            raise ValueError(
                f"no difficulty for the instruction {instruction[:80]!r}: give AlpacaEval's own "
                "instructions, or no difficulties for the raw win rate alone"
            )
    if difficulties is not None:
        order = {instruction: i for i, instruction in enumerate(difficulties)}
        rows.sort(key=lambda row: order[row["instruction"]])
    return length_controlled_win_rate(
        [1.5 if row["preference"] == 0 else row["preference"] for row in rows],
        [len(row["output_2"]) for row in rows],
        [len(row["output_1"]) for row in rows],
        None if difficulties is None else [difficulties[row["instruction"]] for row in rows],
        gamed,
        C,
        resamples=resamples,
    )


def grade_answers(step: StepRun) -> None:
    """Step: judge stored answers against the baseline's and score them.

    Writes model_outputs.json and annotations.json, which the official tool reads, and grades.jsonl
    and result.json.

    Raises:
        InputError: If the baseline, difficulties or gamed rows cannot be read or do not fit.
    """
    from eval.judging import judge_comparisons, judged_grades, judged_measures

    samples = read_answers(step)
    baseline = read_model_outputs(local_file(step.source("baseline")))
    tables = _tables(step, baseline)  # before anything is asked: a judge may cost
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
    settings = step.neutral["judge"]
    annotations = [
        {
            **row,
            "generator_2": model,
            "annotator": " ".join(filter(None, ("bashrac", settings["engine"], settings["model"]))),
            "preference": None if verdict.preference is None else 1 + verdict.preference,
        }
        for row, verdict in zip(pairs, judgement.verdicts, strict=True)
    ]
    write_annotations(step.directory / "annotations.json", annotations)
    outputs = [
        {key: row[key] for key in ("dataset", "instruction")}
        | {"output": row["output_2"], "generator": model}
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


def _paired(sample: dict[str, Any], baseline: dict[str, Any]) -> dict[str, Any]:
    return {
        "dataset": str(baseline.get("dataset", "")),
        "instruction": baseline["instruction"],
        "output_1": baseline["output"],
        "generator_1": str(baseline.get("generator", "baseline")),
        "output_2": sample["answer"],
    }


def _tables(
    step: StepRun, baseline: list[dict[str, Any]]
) -> tuple[dict[str, float] | None, list[tuple[float, ...]] | None]:
    """Read difficulties and gamed rows, where the step has them.

    Raises:
        InputError: If they do not belong to the baseline's instructions, or one is there twice.
    """
    instructions = [row["instruction"] for row in baseline]
    twice = [text for text, times in Counter(instructions).items() if times > 1]
    if twice:
        raise InputError(f"the baseline has the instruction {twice[0][:80]!r} twice: keep one")
    difficulties = gamed = None
    if "difficulty" in step.inputs:
        difficulties = read_difficulties(local_file(step.source("difficulty")), instructions)
    if "gamed" in step.inputs:
        gamed = read_gamed(local_file(step.source("gamed")))
    return difficulties, gamed


def why_not_controlled(result: WinRate) -> str | None:
    """Return why a length-controlled win rate is not to be shown, None where it is."""
    if result.lc_win_rate is not None and result.n < FEWEST_CONTROLLED:
        return (
            f"{result.n} judged instructions are too few for its regression, which would mostly "
            f"tell of the gamed rows ({FEWEST_CONTROLLED} at least)"
        )
    return result.reason


def _controlled(step: StepRun, result: WinRate) -> dict[str, Measure]:
    """Return the length-controlled win rate as a measure, or none and a warning that says why."""
    reason = why_not_controlled(result)
    if reason is not None:
        step.warn(f"no length-controlled win rate: {reason}")
        return {}
    assert result.lc_win_rate is not None
    lc = result.lc_win_rate, result.lc_interval, result.n, list(result.lc_replicates)
    more = {"C": result.C, "standard_error": result.lc_standard_error}
    return {"LC win rate": {**replicated(*lc), **more}}
