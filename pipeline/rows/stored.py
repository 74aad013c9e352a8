"""The rows that steps store in files: their types, and functions to read and write them.

Rows stay on disk: each is read when it is looked at.
This module must not import torch: benchmarks grade answers without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from pipeline.data.tasks import Messages, Tools
from pipeline.steps.artifact import SAMPLES, StoredRows, write_rows

ROWS = "rows.jsonl"  # of contexts, corrections and kept answers
PAIRS = "pairs.jsonl"


class AnswerRow(TypedDict):
    """A free answer (`samples.jsonl`).

    `finished`: whether the model ended it, rather than the token limit. `few_shot`: the solved
    examples before the prompt.
    """

    id: int
    sample: int
    messages: Messages
    tools: NotRequired[Tools]
    reference: str
    few_shot: NotRequired[str]
    answer: str
    ids: list[int]
    finished: bool


class Grade(TypedDict):
    """A graded answer (`grades.jsonl`); each benchmark adds what its verdict is based on."""

    id: int
    verdict: str  # shown to users


class SelfGeneratedRow(TypedDict):
    """A training row (`rows.jsonl`); labels are -100 on the prompt and wherever there is none."""

    id: int
    input_ids: list[int]
    labels: list[int]


class PairRow(TypedDict):
    """A preference pair (`pairs.jsonl`); `chosen_ids` is None where the reference is chosen."""

    id: int
    prompt: Messages
    tools: NotRequired[Tools]
    chosen: str
    rejected: str
    chosen_ids: list[int] | None
    rejected_ids: list[int]
    rejected_finished: bool


def read_answers(folder: Path) -> Sequence[AnswerRow]:
    """The answers of a step, by row and sample."""
    return cast(Sequence[AnswerRow], StoredRows(folder / SAMPLES))


def read_self_generated(folder: Path) -> Sequence[SelfGeneratedRow]:
    """The contexts or corrections of a step."""
    return cast(Sequence[SelfGeneratedRow], StoredRows(folder / ROWS))


def read_pair_rows(folder: Path) -> Sequence[PairRow]:
    """The pairs of a step."""
    return cast(Sequence[PairRow], StoredRows(folder / PAIRS))


def write_pair_rows(folder: Path, pairs: Iterable[PairRow]) -> int:
    """Write the pairs of a step and return their number."""
    return write_rows(folder / PAIRS, pairs)
