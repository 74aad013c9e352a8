"""The input of RAC: self-generated answers, with their row and reference-conditioned prompt."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.load import TokenRow, load_examples, tokenise
from pipeline.data.render import Renderer
from pipeline.errors import InputError
from pipeline.rows.answers import answer_figures
from pipeline.rows.stored import read_answers
from pipeline.steps.context import StepContext
from pipeline.steps.options import CorrectionOptions


@dataclass(frozen=True, slots=True)
class CorrectionInput:
    """A self-generated answer to correct.

    Attributes:
        row: the training row it answers.
        answer: its token ids, cut to fit after the prompt; the last one is the end-of-turn token
            if the model ended the answer.
        finished: whether the model ended the answer and nothing was cut.
        shown: token ids of the reference-conditioned prompt.
    """

    row: TokenRow
    answer: list[int]
    finished: bool
    shown: list[int]


def read_correction_inputs(
    step: StepContext[CorrectionOptions], renderer: Renderer
) -> dict[int, CorrectionInput]:
    """Return the self-generated answers that can be corrected, by row id.

    Raises:
        InputError: if there is none.
    """
    options = step.options
    examples = load_examples(step.source("train"), options["task"], step.warn, renderer)
    token_rows, _ = tokenise(examples, renderer, max_length=options["max_length"])
    written = read_answers(step.input_folders()["answers"])
    step.metrics["figures"] = answer_figures(written)
    asked = {row.row_id: row for row in token_rows}
    inputs = {}
    for found in written:
        row = asked.get(found["id"])
        if row is None:
            continue
        whole = renderer.own_answer_ids(found["ids"], finished=found["finished"])
        # Training puts the answer after the plain prompt, so that is where it has to fit.
        answer = whole[: row.room]
        shown = row.example.shown(
            options["shown_prompt"], answer=found["answer"], end=renderer.end_of_turn
        )
        prompt = renderer.prompt_ids(shown)
        # A sequence correction writes a new answer after the prompt; labels only score this one.
        size = options["max_new_tokens"] if options["correction"] == "sequence" else len(answer)
        if renderer.window is None or len(prompt) + size <= renderer.window:
            finished = found["finished"] and answer == whole
            inputs[row.row_id] = CorrectionInput(row, answer, finished, prompt)
    left_out = len(written) - len(inputs)
    sentence = (
        f"{left_out} of {len(written)} self-generated answers are not corrected: with the "
        f"reference in the prompt they exceed the model's {renderer.window} tokens of context, or "
        f"their plain prompt exceeds max_length {options['max_length']}"
    )
    if not inputs:
        raise InputError(f"{sentence}; use shorter rows, or a shorter shown_prompt")
    if left_out:
        step.warn(sentence)
    return inputs
