"""Test rows that share 13 words in a row with training rows (eval/graders/overlap.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from eval.graders.overlap import BenchmarkItem, Overlaps, overlaps
from pipeline.data.tasks import Example, Messages, PreferencePair
from pipeline.errors import InputError
from pipeline.steps.artifact import RESULT, write_json, write_rows

if TYPE_CHECKING:
    from pipeline.data.render import Renderer
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import OverlapOptions

OVERLAPS = "overlaps.jsonl"


class OverlapRow(TypedDict):
    """A test row that shares words with training rows (`overlaps.jsonl`); see `Overlap`."""

    id: int
    where: str
    training_rows: int
    first_source: str
    first_row: int
    words: str


def training_texts(row: Example | PreferencePair) -> list[str]:
    """Return the texts of a training row without system messages."""
    if isinstance(row, PreferencePair):
        return [*_spoken(row.example.messages), row.chosen, row.rejected]
    return [*_spoken(row.messages), row.reference]


def benchmark_item(example: Example) -> BenchmarkItem:
    """Return the texts of a test row without system messages."""
    return BenchmarkItem(tuple(_spoken(example.messages)), example.reference)


def check_overlap(step: StepContext[OverlapOptions]) -> None:
    """Step: find test rows among the training rows; writes overlaps.jsonl and result.json.

    The training rows come from the inputs `train` and `preferences`, one or both.

    Raises:
        InputError: If there are no training rows.
    """
    from pipeline.data.load import load_examples

    test, renderer = step.source("test"), _renderer(step)
    task = step.options["test_task"]
    examples = load_examples(test, task, step.warn, renderer, answered=False)
    items = [benchmark_item(example) for example in examples]
    # Few-shot prompts leave the chat template aside, training does not.
    sources = _training_rows(step, None if "few_shot" in step.options else renderer)
    found = overlaps(_streamed(step, sources), items, n=step.options["n"])
    write_rows(step.directory / OVERLAPS, _as_rows(found, sources))
    write_json(
        step.directory / RESULT,
        {
            "n": found.items,
            "training_rows": found.training_rows,
            "ngram": found.n,
            "items": found.count(),
            "prompts": found.count("prompt"),
            "references": found.count("reference"),
            "short": found.short,
        },
    )
    # Built-in rows are made from templates, so they are expected to overlap.
    if found.found and test.builtin is None:
        step.warn(f"{_describe(found)}; they are listed in {step.directory / OVERLAPS}")


def _spoken(messages: Messages) -> list[str]:
    return [message["content"] for message in messages if message["role"] != "system"]


def _renderer(step: StepContext[Any]) -> Renderer | None:
    """The model's, where rows are left out, perhaps because of its chat template.

    Items are numbered as answers are, so the same rows must be left out.
    """
    if "base" not in step.locations:
        return None
    from pipeline.data.render import renderer_for

    return renderer_for(step)


def _training_rows(
    step: StepContext[OverlapOptions], renderer: Renderer | None
) -> dict[str, Sequence[Example] | Sequence[PreferencePair]]:
    from pipeline.data.load import load_examples, load_preferences

    task = step.options["task"]
    rows: dict[str, Sequence[Example] | Sequence[PreferencePair]] = {}
    if "train" in step.locations:
        rows["train"] = load_examples(step.source("train"), task, step.warn, renderer)
    if "preferences" in step.locations:
        source = step.source("preferences")
        rows["preferences"] = load_preferences(source, task, step.warn, renderer)
    if not rows:
        raise InputError(
            "there are no training rows to compare the test items with; add them to the recipe "
            "under data: train or data: preferences"
        )
    return rows


def _streamed(
    step: StepContext, sources: dict[str, Sequence[Example] | Sequence[PreferencePair]]
) -> Iterator[list[str]]:
    total = sum(map(len, sources.values()))
    done = 0
    for rows in sources.values():
        for row in rows:
            yield training_texts(row)
            done += 1
            step.progress(done, total, "rows")


def _as_rows(
    found: Overlaps, sources: dict[str, Sequence[Example] | Sequence[PreferencePair]]
) -> Iterator[OverlapRow]:
    places = [(role, example) for role, rows in sources.items() for example in map(_example, rows)]
    for overlap in found.found:
        role, example = places[overlap.first_row - 1]
        line = re.search(r"[0-9]+\Z", example.place)
        assert line is not None  # rows are numbered wherever they come from
        yield {
            "id": overlap.item,
            "where": overlap.where,
            "training_rows": overlap.training_rows,
            "first_source": f"{role} ({example.part})" if example.part else role,
            "first_row": int(line[0]),
            "words": overlap.words,
        }


def _example(row: Example | PreferencePair) -> Example:
    return row.example if isinstance(row, PreferencePair) else row


def _describe(found: Overlaps) -> str:
    whole = any(len(overlap.words.split(" ")) < found.n for overlap in found.found)
    shorter = " (or the whole of a shorter text)" if whole else ""
    verb = "shares" if found.count() == 1 else "share"
    return (
        f"{found.count()} of {found.items} test items {verb} {found.n} words in a row{shorter} "
        "with training rows"
    )
