"""Checks the rows of a training step, before weights are loaded, for silent mistakes.

A row that must be wrong stops the run and is printed; one that may be is counted in a warning:

| checked | stops | warns |
| --- | --- | --- |
| prompt | not the start of a row written by an earlier step, or has loss | |
| chat template | | renders a prompt differently once it is answered |
| beginning token | occurs twice | |
| end token of a model without chat template | ends the prompt | |
| end-of-turn token | not the last label of a complete answer, or never a label | inside an answer |
| labels | none in a row, or no rows at all | |
| length | exceeds the model's context length | |
| token ids | beyond the model's embedding | |
| padding token | | is an end token |

`pipeline.data.load` counts rows cut and dropped, and special tokens in their text;
`pipeline.data.render` checks that an answer follows the generation prompt of the template, and that
rows, weights and answers were made with the same rendering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from pipeline.data.render import Renderer
from pipeline.errors import InputError
from pipeline.steps.context import StepContext

_SHOWN_TOKENS = 40


@dataclass(frozen=True)
class Row:
    """A row as the trainer gets it.

    Attributes:
        name: where it comes from, such as 'pairs.jsonl:3, rejected'.
        prompt: the prompt's ids as generation renders them.
        input_ids: what the model reads.
        labels: what it is trained to predict; -100 for positions without loss.
        whole: whether the labels are a complete answer, and so must end the turn.
        wanted: whether training makes the labels likelier; false for rejected answers.
    """

    name: str
    prompt: Sequence[int]
    input_ids: Sequence[int]
    labels: Sequence[int]
    whole: bool
    wanted: bool = True


def check_rows(step: StepContext, rows: Sequence[Row], renderer: Renderer) -> None:
    """Raise for a row that must be wrong; warn about rows that may be.

    Raises:
        InputError: with the row printed, or if there are no rows.
    """
    if not rows:
        raise InputError("there are no rows to train on; raise max_length, or provide more rows")
    end = renderer.end_of_turn_id
    for row in rows:
        problem = _problem(row, renderer)
        if problem:
            _stop(row, problem, renderer)
    if not any(row.wanted and end in row.labels for row in rows):
        _stop(
            rows[0],
            "has no end-of-turn token as a label, nor has any other row, so the model would never "
            "learn to stop: raise max_length, so that answers are not all cut",
            renderer,
        )
    inside = [row.name for row in rows if row.whole and end in row.labels[:-1]]
    if inside:
        step.warn(
            f"{len(inside)} of {len(rows)} rows have the end-of-turn token inside the answer, "
            f"first {inside[0]}: the model learns to stop there"
        )
    if not renderer.prompt_starts_dialogue():
        step.warn(
            "the chat template renders a prompt differently once it is answered: training and "
            "generation here use the generation prompt, other software may not"
        )
    if renderer.tokenizer.pad_token_id in renderer.stop_ids:
        step.warn(
            f"the padding token {renderer.tokenizer.pad_token!r} is also an end token: training "
            "here masks by position and is correct, other software may mask the end of every answer"
        )


def _problem(row: Row, renderer: Renderer) -> str | None:
    size = len(row.prompt)
    begin = renderer.tokenizer.bos_token_id
    if list(row.input_ids[:size]) != list(row.prompt):
        return "does not start with the prompt as generation renders it"
    if any(label != -100 for label in row.labels[:size]):
        return "has loss on its prompt"
    if begin is not None and list(row.input_ids[:2]) == [begin, begin]:
        return (
            "starts with two beginning tokens, one of them from its text: remove it from the text "
            "(or from the chat template)"
        )
    if not renderer.has_template and row.prompt[-1] == renderer.end_of_turn_id:
        return (
            "has an end token at the end of its prompt, added by the tokenizer: set "
            "add_eos_token to false in its tokenizer_config.json"
        )
    if renderer.window is not None and len(row.input_ids) > renderer.window:
        return (
            f"has {len(row.input_ids)} tokens, more than the model's context of {renderer.window}: "
            "lower max_length"
        )
    if (unknown := renderer.unknown([*row.input_ids, *row.labels])) is not None:
        return f"holds a token that the model does not have: {renderer.describe_unknown(unknown)}"
    if all(label == -100 for label in row.labels):
        return "has no label, so nothing of it would be trained: remove the row"
    if row.whole and row.labels[-1] != renderer.end_of_turn_id:
        return "is a complete answer whose last label is not the end-of-turn token"
    return None


def _stop(row: Row, problem: str, renderer: Renderer) -> NoReturn:
    answer = [label for label in row.labels if label != -100]
    parts = {"prompt": row.prompt, "input": row.input_ids, "labels": answer}
    shown = [f"  {name}: {_ends_of(list(ids), renderer)}" for name, ids in parts.items()]
    raise InputError("\n".join([f"{row.name} {problem}", *shown]))


def _ends_of(ids: list[int], renderer: Renderer) -> str:
    """The first and last tokens as text, including special tokens."""
    half = _SHOWN_TOKENS // 2
    parts = [ids] if len(ids) <= _SHOWN_TOKENS else [ids[:half], ids[-half:]]
    return " ... ".join(repr(renderer.tokenizer.decode(part)) for part in parts)
