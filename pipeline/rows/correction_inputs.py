"""A model's own answers as RAC corrects them: each with its row, and the reference shown."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.load import TokenRow, load_examples, tokenise
from pipeline.data.render import Renderer
from pipeline.errors import InputError
from pipeline.rows.answers import answer_figures
from pipeline.steps.artifact import SAMPLES, read_rows
from pipeline.steps.context import StepContext


@dataclass(frozen=True)
class CorrectionInput:
    """An own answer to correct.

    Attributes:
        row: the training row it answers.
        answer: its ids, cut to the row's room, with an end-of-turn token where it has one.
        finished: whether it has.
        shown: ids of the prompt in which the reference is shown.
    """

    row: TokenRow
    answer: list[int]
    finished: bool
    shown: list[int]


def read_correction_inputs(step: StepContext, renderer: Renderer) -> dict[int, CorrectionInput]:
    """Return the own answers that can be corrected, by row id.

    Raises:
        InputError: when there is none.
    """
    options = step.options
    examples = load_examples(step.source("train"), options["task"], step.warn)
    token_rows, _ = tokenise(examples, renderer, max_length=options["max_length"])
    written = read_rows(step.input_folders()["answers"] / SAMPLES)
    step.metrics["figures"] = answer_figures(written)
    own = {row["id"]: row for row in written}
    drafts = {}
    for row in token_rows:
        if row.row_id not in own:
            continue
        found = own[row.row_id]
        whole = renderer.own_answer_ids(found["ids"], finished=found["finished"])
        answer = whole[: row.room]
        shown = row.example.shown(
            options["shown_prompt"], answer=found["answer"], end=renderer.end_of_turn
        )
        prompt = renderer.prompt_ids(shown)
        size = options["max_new_tokens"] if options["correction"] == "sequence" else len(answer)
        if renderer.window is None or len(prompt) + size <= renderer.window:
            finished = found["finished"] and answer == whole
            drafts[row.row_id] = CorrectionInput(row, answer, finished, prompt)
    left_out = len(written) - len(drafts)
    sentence = (
        f"{left_out} of {len(written)} own answers are not corrected: with the reference shown "
        f"they exceed the model's window of {renderer.window} tokens, or their prompt max_length "
        f"{options['max_length']}"
    )
    if not drafts:
        raise InputError(f"{sentence}; use shorter rows, or a shorter shown_prompt")
    if left_out:
        step.warn(sentence)
    return drafts
