r"""Which test items share 13 words in a row with training rows.

What counts as shared, decided once:

1. Words are maximal runs of `\w` after NFKC normalisation and lowercasing, so case, punctuation,
   spacing and line breaks do not matter. An underscore is part of a word. Scripts that are written
   without spaces have a word per sentence, so there only long copies are found.
2. An n-gram is n words in a row within one text: a message or an answer. It never crosses the
   border between two texts.
3. A test text of fewer than n words has no n-gram. It is compared whole: it is shared if a training
   text has the same words and no others. A text without any word shares nothing. Items with such
   texts are counted as short.
4. System messages are neither training nor test text: all rows have the same one.
5. A training row counts once for an item's prompt and once for its reference, however often it
   shares words with them.

The index is made of the test texts; training rows are streamed past it. Memory is that of the test
set, and results are exact: what is found is a comparison of words, never of hashes alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.artifact import RESULT, write_json, write_rows
from pipeline.errors import InputError
from pipeline.tasks import Example, Messages, PreferencePair

if TYPE_CHECKING:
    from pipeline.step import StepRun

OVERLAPS = "overlaps.jsonl"
PARTS = ("prompt", "reference")

_find_words = re.compile(r"\w+").findall
# What no word holds becomes a space. For ASCII text this and split() are twice as fast as `\w+`.
_ASCII_WORDS = {code: chr(code).lower() if _find_words(chr(code)) else " " for code in range(128)}

Gram = tuple[str, ...]
Part = tuple[int, str]  # an item's position, and which of PARTS


@dataclass(frozen=True)
class BenchmarkItem:
    """A test item's texts.

    Attributes:
        prompt: The texts of the prompt: its messages without the system message.
        reference: The reference answer.
    """

    prompt: tuple[str, ...]
    reference: str


@dataclass(frozen=True)
class Overlap:
    """A test item's prompt or reference that training rows share words with.

    Attributes:
        item: The item's position, from 0.
        where: "prompt" or "reference".
        training_rows: Training rows that share words with it.
        first_row: The first of them, from 1.
        words: Words that row shares: n in a row, or the whole of a shorter text.
    """

    item: int
    where: str
    training_rows: int
    first_row: int
    words: str


@dataclass(frozen=True)
class Overlaps:
    """What test items and training rows share.

    Attributes:
        n: Words in a row that were looked for.
        items: Number of test items.
        training_rows: Number of training rows.
        short: Test items with a text of fewer than n words, which was compared whole.
        found: What is shared, in the order of the items, a prompt before its reference.
    """

    n: int
    items: int
    training_rows: int
    short: int
    found: tuple[Overlap, ...]

    def count(self, *where: str) -> int:
        """Return the number of items that share words in one of these parts (default: in any)."""
        return len({overlap.item for overlap in self.found if overlap.where in (where or PARTS)})


def words_of(text: str) -> list[str]:
    """Return a text's words as they are compared."""
    if text.isascii():
        return text.translate(_ASCII_WORDS).split()
    # Normalised again because lowercasing may take a letter apart.
    lowered = unicodedata.normalize("NFKC", text).lower()
    return _find_words(unicodedata.normalize("NFKC", lowered))


def overlaps(
    training: Iterable[Sequence[str]], items: Sequence[BenchmarkItem], *, n: int = 13
) -> Overlaps:
    """Find the test items that share n words in a row with training rows.

    Args:
        training: The texts of each training row; read once, a row at a time.
        items: The test items.
        n: Words in a row, at least 1.

    Returns:
        What is shared, with counts of items and rows.

    Raises:
        ValueError: If n is not positive.
    """
    if n < 1:
        raise ValueError(f"n is {n}, valid is at least 1 (13)")
    owners: dict[Gram, set[Part]] = {}
    for number, item in enumerate(items):
        for where, texts in zip(PARTS, (item.prompt, (item.reference,)), strict=True):
            for gram in _grams(texts, n):
                owners.setdefault(gram, set()).add((number, where))
    rows: Counter[Part] = Counter()
    first: dict[Part, tuple[int, Gram]] = {}
    number = 0
    for number, texts in enumerate(training, start=1):
        shared = {gram: None for gram in _grams(texts, n) if gram in owners}
        rows.update({part for gram in shared for part in owners[gram]})
        for gram in shared:
            for part in owners[gram]:
                first.setdefault(part, (number, gram))
    found = [
        Overlap(item, where, rows[item, where], row, " ".join(gram))
        for (item, where), (row, gram) in sorted(first.items())
    ]
    short = sum(
        any(len(words_of(text)) < n for text in (*item.prompt, item.reference)) for item in items
    )
    return Overlaps(n, len(items), number, short, tuple(found))


def _grams(texts: Iterable[str], n: int) -> Iterator[Gram]:
    """Yield the n-grams of each text in order, of a shorter one the whole."""
    for text in texts:
        words = words_of(text)
        if len(words) >= n:
            yield from zip(*(words[start:] for start in range(n)), strict=False)
        elif words:
            yield tuple(words)


def training_texts(row: Example | PreferencePair) -> list[str]:
    """Return the texts of a row that a model is trained on, system messages left out."""
    if isinstance(row, PreferencePair):
        return [*_spoken(row.example.messages), row.chosen, row.rejected]
    return [*_spoken(row.messages), row.reference]


def benchmark_item(example: Example) -> BenchmarkItem:
    """Return the texts of a test row, system messages left out."""
    return BenchmarkItem(tuple(_spoken(example.messages)), example.reference)


def check_overlap(step: StepRun) -> None:
    """Step: look for test items among the training rows; writes overlaps.jsonl and result.json.

    The training rows are those of the inputs `train` and `preferences`, one or both.

    Raises:
        InputError: If there are no training rows to look through.
    """
    from pipeline.data import load_examples

    test = step.source("test")
    examples = load_examples(test, step.options["test_task"], step.warn)
    items = [benchmark_item(example) for example in examples]
    sources = _training_rows(step)
    found = overlaps(_streamed(step, sources), items, n=step.options["n"])
    skipped = {role: step.source(role).skip for role in sources}
    write_rows(step.directory / OVERLAPS, _as_rows(found, sources, skipped))
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
    # Built-in rows come from templates, and say so; anywhere else it is news.
    if found.found and test.builtin is None:
        step.warn(f"{_describe(found)}; they are listed in {step.directory / OVERLAPS}")


def _spoken(messages: Messages) -> list[str]:
    return [message["content"] for message in messages if message["role"] != "system"]


def _training_rows(step: StepRun) -> dict[str, Sequence[Example] | Sequence[PreferencePair]]:
    from pipeline.data import load_examples, load_preferences

    task = step.options["task"]
    rows: dict[str, Sequence[Example] | Sequence[PreferencePair]] = {}
    if "train" in step.inputs:
        rows["train"] = load_examples(step.source("train"), task, step.warn)
    if "preferences" in step.inputs:
        rows["preferences"] = load_preferences(step.source("preferences"), task, step.warn)
    if not rows:
        raise InputError(
            "there are no training rows to compare the test items with; name them in the recipe "
            "under data: train or data: preferences"
        )
    return rows


def _streamed(
    step: StepRun, sources: dict[str, Sequence[Example] | Sequence[PreferencePair]]
) -> Iterator[list[str]]:
    total = sum(map(len, sources.values()))
    done = 0
    for rows in sources.values():
        for row in rows:
            yield training_texts(row)
            done += 1
            step.progress(done, total, "rows")


def _as_rows(
    found: Overlaps, sources: dict[str, Sequence[Any]], skipped: dict[str, int]
) -> Iterator[dict[str, Any]]:
    for overlap in found.found:
        source, row = _place(overlap.first_row, sources)
        yield {
            "id": overlap.item,
            "where": overlap.where,
            "training_rows": overlap.training_rows,
            "first_source": source,
            "first_row": skipped[source] + row,
            "words": overlap.words,
        }


def _place(number: int, sources: dict[str, Sequence[Any]]) -> tuple[str, int]:
    """Return the source that holds a row of all sources, and the row's number in it, from 1."""
    for source, rows in sources.items():
        if number <= len(rows):
            return source, number
        number -= len(rows)
    raise ValueError(f"the row asked for is {number} rows past the end of all sources")


def _describe(found: Overlaps) -> str:
    whole = any(len(overlap.words.split(" ")) < found.n for overlap in found.found)
    shorter = " (or the whole of a shorter text)" if whole else ""
    verb = "shares" if found.count() == 1 else "share"
    return (
        f"{found.count()} of {found.items} test items {verb} {found.n} words in a row{shorter} "
        "with training rows"
    )
