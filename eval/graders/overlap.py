r"""Finds test items that share 13 words in a row with training rows.

What counts as shared:

1. Words are maximal runs of `\w` after NFKC normalisation and lowercasing, so case, punctuation,
   spacing and line breaks do not matter. An underscore is part of a word. In scripts written
   without spaces a whole sentence is one word, so only long copies are found there.
2. An n-gram is n words in a row within one text: a message or an answer. It never spans two texts.
3. A test text of fewer than n words has no n-gram. It is compared as a whole: it is shared if a
   training text has exactly the same words. A text without words shares nothing. Items with such
   texts are counted as short.
4. System messages are ignored in training and test rows, because all rows have the same one.
5. A training row counts once for an item's prompt and once for its reference, however many n-grams
   it shares with them.

We index the test texts and stream training rows past the index. Memory grows with the test set
only, and results are exact: words are compared, not just hashes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

PARTS = ("prompt", "reference")


_find_words = re.compile(r"\w+").findall


# Non-word characters become spaces. For ASCII text this and split() is twice as fast as `\w+`.
_ASCII_WORDS = {code: chr(code).lower() if _find_words(chr(code)) else " " for code in range(128)}


Gram = tuple[str, ...]


Part = tuple[int, str]  # an item's position, and which of PARTS


@dataclass(frozen=True)
class BenchmarkItem:
    """The texts of a test item.

    Attributes:
        prompt: The texts of the prompt: its messages without the system message.
        reference: The reference answer.
    """

    prompt: tuple[str, ...]
    reference: str


@dataclass(frozen=True)
class Overlap:
    """A test item's prompt or reference that shares words with training rows.

    Attributes:
        item: The item's position, from 0.
        where: "prompt" or "reference".
        training_rows: Training rows that share words with it.
        first_row: The first of them, from 1.
        words: The words shared with that row: n in a row, or all of a shorter text.
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
        n: The length of the n-grams.
        items: Number of test items.
        training_rows: Number of training rows.
        short: Test items with a text of fewer than n words, which was compared as a whole.
        found: The overlaps, in the order of the items, a prompt before its reference.
    """

    n: int
    items: int
    training_rows: int
    short: int
    found: tuple[Overlap, ...]

    def count(self, *where: str) -> int:
        """Return how many items share words in one of these parts (default: in any)."""
        return len({overlap.item for overlap in self.found if overlap.where in (where or PARTS)})


def words_of(text: str) -> list[str]:
    """Return the normalised words of a text."""
    if text.isascii():
        return text.translate(_ASCII_WORDS).split()
    # Normalised again because lowercasing may decompose a letter.
    lowered = unicodedata.normalize("NFKC", text).lower()
    return _find_words(unicodedata.normalize("NFKC", lowered))


def overlaps(
    training: Iterable[Sequence[str]], items: Sequence[BenchmarkItem], *, n: int = 13
) -> Overlaps:
    """Find the test items that share n words in a row with training rows.

    Args:
        training: The texts of each training row; iterated over once.
        items: The test items.
        n: Words in a row, at least 1.

    Returns:
        The overlaps, with counts of items and rows.

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
    """Yield the n-grams of each text in order; a shorter text is yielded as a whole."""
    for text in texts:
        words = words_of(text)
        if len(words) >= n:
            yield from zip(*(words[start:] for start in range(n)), strict=False)
        elif words:
            yield tuple(words)
