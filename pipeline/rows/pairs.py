"""Preference pairs, as files and as token rows, for DPO and SPIN."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.data.load import describe_losses, fit_prompt, load_preferences
from pipeline.data.preflight import Row
from pipeline.data.render import Renderer
from pipeline.data.tasks import Example
from pipeline.errors import InputError
from pipeline.rows.stored import (
    AnswerRow,
    PairRow,
    read_answers,
    read_pair_rows,
    write_pair_rows,
)
from pipeline.steps.artifact import read_record
from pipeline.steps.context import StepContext
from pipeline.steps.options import TrainOptions


def own_pair(*, chosen: AnswerRow | None, rejected: AnswerRow) -> PairRow:
    """A pair with a self-generated rejected answer; chosen None stands for the reference.

    Self-generated answers keep their token ids: tokenising their text again may give others.
    """
    pair: PairRow = {
        "id": rejected["id"],
        "prompt": rejected["messages"],
        "chosen": chosen["answer"] if chosen else rejected["reference"],
        "rejected": rejected["answer"],
        "chosen_ids": chosen["ids"] if chosen else None,
        "rejected_ids": rejected["ids"],
        # An answer cut at the token limit must not teach that turns end there.
        "rejected_finished": rejected["finished"],
    }
    if "tools" in rejected:
        pair["tools"] = rejected["tools"]
    return pair


def read_answers_of(step: StepContext, name: str) -> list[AnswerRow]:
    """Read the self-generated answers to pair, and copy how they were rendered to the metrics."""
    folder = step.input_folders()[name]
    step.metrics["rendering"] = read_record(folder)["metrics"].get("rendering")  # see renderer_for
    return read_answers(folder)


def store_pairs(step: StepContext, pairs: Sequence[PairRow]) -> None:
    """Write pairs for `read_pairs` of a training step."""
    if step.state.is_main_process:
        write_pair_rows(step.directory, pairs)


def read_pairs(step: StepContext[TrainOptions], renderer: Renderer) -> list[tuple[Row, Row]]:
    """Read the step's pairs as rows (chosen, rejected) of at most `max_length` tokens.

    Raises:
        InputError: if no pair is left.
    """
    max_length = step.options["trainer"]["max_length"]
    pairs = _rendered_pairs(step, renderer)
    rows, cut, chosen_cut, prompts_cut, equal = [], 0, 0, 0, 0
    for number, (example, chosen, rejected) in enumerate(pairs, start=1):
        fitted = fit_prompt(example, renderer, max_length=max_length)
        if fitted is None:
            continue
        shorter, prompt, room = fitted
        sides = []
        for name, answer in (("chosen", chosen), ("rejected", rejected)):
            ids = answer[:room]
            # A cut answer has no end-of-turn label, which `check_rows` must not demand then.
            ends = ids == answer and answer[-1:] == [renderer.end_of_turn_id]
            labels = [-100] * len(prompt) + ids
            wanted = name == "chosen"
            sides.append(Row(f"pair {number}, {name}", prompt, prompt + ids, labels, ends, wanted))
        if sides[0].input_ids == sides[1].input_ids:
            equal += 1
            continue
        rows.append((sides[0], sides[1]))
        prompts_cut += shorter is not example
        chosen_cut += len(chosen) > room
        cut += max(len(chosen), len(rejected)) > room
    counts = {"rows": len(rows), "dropped": len(pairs) - len(rows) - equal, "cut": cut}
    step.metrics["data"] = counts | {"chosen_cut": chosen_cut, "prompts_cut": prompts_cut}
    longest = renderer.max_prompt_length
    same = (
        f"{equal} of {len(pairs)} pairs left out: both answers are the same tokens, cut at "
        f"max_length {max_length}, so there is no preference to learn"
    )
    if equal and not rows:
        raise InputError(f"{same}; raise max_length, or provide other pairs")
    if equal:
        step.metrics["data"]["equal"] = equal
        step.warn(same)
    if not rows:
        raise InputError(
            f"all {len(pairs)} preference prompts are too long (max_length {max_length}, "
            f"max_prompt_length {longest}) and leave no room for an answer; raise these limits"
        )
    losses = describe_losses(step.metrics["data"], max_length=max_length, max_prompt_length=longest)
    if losses:
        step.warn(losses)
    return rows


def _rendered_pairs(
    step: StepContext[TrainOptions], renderer: Renderer
) -> list[tuple[Example, list[int], list[int]]]:
    """Each pair's prompt, and the ids of its chosen and rejected answers."""
    task = step.options["task"]
    if "preferences" in step.locations:
        return [
            (
                pair.example,
                renderer.answer_ids(pair.example, pair.chosen),
                renderer.answer_ids(pair.example, pair.rejected),
            )
            for pair in load_preferences(step.source("preferences"), task, step.warn, renderer)
        ]
    pairs = []
    for row in read_pair_rows(step.input_folders()["pairs"]):
        example = Example(task, row["prompt"], row["chosen"], tools=row.get("tools"))
        rejected = renderer.own_answer_ids(row["rejected_ids"], finished=row["rejected_finished"])
        chosen = renderer.answer_ids(example, row["chosen"])
        if row["chosen_ids"] is not None:
            chosen = renderer.own_answer_ids(row["chosen_ids"], finished=True)
        pairs.append((example, chosen, rejected))
    return pairs
