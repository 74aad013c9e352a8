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
