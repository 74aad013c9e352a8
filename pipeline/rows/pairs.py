"""Preference pairs, as files and as token rows, for DPO and SPIN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from pipeline.data.load import describe_losses, fit_prompt, load_preferences
from pipeline.data.render import Renderer
from pipeline.data.tasks import Example
from pipeline.errors import InputError
from pipeline.rows.stored import (
    PAIRS,
    AnswerRow,
    PairRow,
    read_answers,
    read_pair_rows,
    write_pair_rows,
)
from pipeline.rows.table import Answer, PairTable
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


def read_answers_of(step: StepContext, name: str) -> Sequence[AnswerRow]:
    """The self-generated answers to pair; how they were rendered is copied to the metrics."""
    folder = step.input_folders()[name]
    step.metrics["rendering"] = read_record(folder)["metrics"].get("rendering")  # see renderer_for
    return read_answers(folder)


def store_pairs(step: StepContext, pairs: Iterator[PairRow]) -> int:
    """Write pairs for `read_pairs` of a training step; returns how many. For none, no file."""
    first = next(pairs, None)
    if first is None:
        return 0
    if step.state.is_main_process:
        return write_pair_rows(step.directory, chain([first], pairs))
    return 1 + sum(1 for _ in pairs)


def read_pairs(step: StepContext[TrainOptions], renderer: Renderer) -> PairTable:
    """Read the step's pairs, each side cut to `max_length` tokens.

    Raises:
        InputError: if no pair is left.
    """
    max_length = step.options["trainer"]["max_length"]
    pairs, read = PairTable(), 0
    cut, chosen_cut, prompts_cut, equal = 0, 0, 0, 0
    for example, chosen, rejected in _rendered_pairs(step, renderer):
        read += 1
        fitted = fit_prompt(example, renderer, max_length=max_length)
        if fitted is None:
            continue
        shorter, prompt, room = fitted
        if chosen[:room] == rejected[:room]:
            equal += 1
            continue
        answers = [
            Answer(whole[:room], len(whole) <= room and whole[-1:] == [renderer.end_of_turn_id])
            for whole in (chosen, rejected)
        ]
        pairs.add(example.place, prompt, *answers)
        prompts_cut += shorter is not example
        chosen_cut += len(chosen) > room
        cut += max(len(chosen), len(rejected)) > room
    counts = {"rows": len(pairs), "dropped": read - len(pairs) - equal, "cut": cut}
    step.metrics["data"] = counts | {"chosen_cut": chosen_cut, "prompts_cut": prompts_cut}
    longest = renderer.max_prompt_length
    same = (
        f"{equal} of {read} pairs left out: both answers are the same tokens, cut at "
        f"max_length {max_length}, so there is no preference to learn"
    )
    if equal and not pairs:
        raise InputError(f"{same}; raise max_length, or provide other pairs")
    if equal:
        step.metrics["data"]["equal"] = equal
        step.warn(same)
    if not pairs:
        raise InputError(
            f"all {read} preference prompts are too long (max_length {max_length}, "
            f"max_prompt_length {longest}) and leave no room for an answer; raise these limits"
        )
    losses = describe_losses(step.metrics["data"], max_length=max_length, max_prompt_length=longest)
    if losses:
        step.warn(losses)
    return pairs


def _rendered_pairs(
    step: StepContext[TrainOptions], renderer: Renderer
) -> Iterator[tuple[Example, list[int], list[int]]]:
    """Each pair's prompt, and the ids of its chosen and rejected answers."""
    task = step.options["task"]
    if "preferences" in step.locations:
        for pair in load_preferences(step.source("preferences"), task, step.warn, renderer):
            texts = (pair.chosen, pair.rejected)
            chosen, rejected = (renderer.answer_ids(pair.example, text) for text in texts)
            yield pair.example, chosen, rejected
        return
    folder = step.input_folders()["pairs"]
    for number, row in enumerate(read_pair_rows(folder), start=1):
        place = f"{folder / PAIRS}:{number}"
        example = Example(task, row["prompt"], row["chosen"], tools=row.get("tools"), place=place)
        rejected = renderer.own_answer_ids(row["rejected_ids"], finished=row["rejected_finished"])
        chosen = renderer.answer_ids(example, row["chosen"])
        if row["chosen_ids"] is not None:
            chosen = renderer.own_answer_ids(row["chosen_ids"], finished=True)
        yield example, chosen, rejected
