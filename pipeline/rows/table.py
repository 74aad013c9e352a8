"""Training rows in compact arrays: 4 bytes per input token and 4 per label; in pairs no labels.

Python lists would take ten times as much, in every process, for as long as training lasts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pipeline.data.preflight import Row
from pipeline.lazy import Lazy, Mapped

TokenIds = dict[str, list[int]]  # input_ids and labels


@dataclass(frozen=True)
class _Place:
    """Metadata of a row; its prompt is the first `prompt` tokens of row number `prompt_of`."""

    name: str
    prompt_of: int
    prompt: int
    whole: bool


class TokenTable(Lazy[Row]):
    """All rows of a step, for checking; a row is built when it is accessed."""

    def __init__(self) -> None:
        self.input_ids, self.labels = array("i"), array("i")
        self.ends = array("q", [0])
        self._places: list[_Place] = []

    def add(
        self, name: str, prompt: int, row: TokenIds, *, whole: bool, prompt_of: int | None = None
    ) -> None:
        """Add a row; its prompt has `prompt` tokens and should equal that of row `prompt_of`."""
        self.input_ids.extend(row["input_ids"])
        self.labels.extend(row["labels"])
        place = len(self._places) if prompt_of is None else prompt_of
        self._places.append(_Place(name, place, prompt, whole))
        self.ends.append(len(self.input_ids))

    def __len__(self) -> int:
        return len(self._places)

    def key(self, number: int) -> tuple[bytes, bytes]:
        """What a row is known by: equal for equal tokens and labels."""
        at = slice(self.ends[number], self.ends[number + 1])
        return self.input_ids[at].tobytes(), self.labels[at].tobytes()

    def name_of(self, number: int) -> str:
        """What a row is called."""
        return self._places[number].name

    def item(self, number: int) -> Row:
        """The row as `check_rows` needs it."""
        place, start = self._places[number], self.ends[number]
        first = self.ends[place.prompt_of]
        return Row(
            place.name,
            self.input_ids[first : first + place.prompt].tolist(),
            self.input_ids[start : self.ends[number + 1]].tolist(),
            self.labels[start : self.ends[number + 1]].tolist(),
            place.whole,
        )


class TrainingRows(Lazy[TokenIds]):
    """The rows of a table to train on, in order; a row may occur several times or not at all."""

    def __init__(self, table: TokenTable, numbers: Sequence[int]):
        self.table, self.numbers = table, array("q", numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def item(self, number: int) -> TokenIds:
        """The row as the trainer needs it."""
        row = self.table[self.numbers[number]]
        return {"input_ids": list(row.input_ids), "labels": list(row.labels)}

    @property
    def sizes(self) -> list[int]:
        """The number of tokens of each row."""
        ends = self.table.ends
        return [ends[number + 1] - ends[number] for number in self.numbers]


@dataclass(frozen=True)
class Answer:
    """A side of a preference pair: its ids, and whether they are a whole answer."""

    ids: list[int]
    whole: bool


class PairTable(Lazy[tuple[Row, Row]]):
    """Preference pairs to train on; the rows (chosen, rejected) are built when they are accessed.

    Attributes:
        parts: prompts, chosen and rejected answers, one after the other, and where each ends.
    """

    def __init__(self) -> None:
        names = ("prompt", "chosen", "rejected")
        self.parts = {name: (array("i"), array("q", [0])) for name in names}
        self._places: list[tuple[str, bool, bool]] = []

    def add(self, name: str, prompt: list[int], chosen: Answer, rejected: Answer) -> None:
        """Add a pair."""
        ids = {"prompt": prompt, "chosen": chosen.ids, "rejected": rejected.ids}
        for part, (values, ends) in self.parts.items():
            values.extend(ids[part])
            ends.append(len(values))
        self._places.append((name, chosen.whole, rejected.whole))

    def __len__(self) -> int:
        return len(self._places)

    def item(self, number: int) -> tuple[Row, Row]:
        """The rows of a pair."""
        return self._side(number, "chosen"), self._side(number, "rejected")

    def _side(self, number: int, part: str) -> Row:
        name, *whole = self._places[number]
        prompt, answer = (
            values[ends[number] : ends[number + 1]].tolist()
            for values, ends in (self.parts["prompt"], self.parts[part])
        )
        wanted = part == "chosen"
        labels = [-100] * len(prompt) + answer
        return Row(f"{name}, {part}", prompt, prompt + answer, labels, whole[not wanted], wanted)

    @property
    def sides(self) -> Sequence[Row]:
        """All rows, for checking."""
        places = [(number, part) for number in range(len(self)) for part in ("chosen", "rejected")]
        return Mapped(lambda place: self._side(*place), places)

    @property
    def longest_answer(self) -> int:
        """The most tokens of an answer."""
        ends = [self.parts[part][1] for part in ("chosen", "rejected")]
        return max((end - start for one in ends for start, end in pairwise(one)), default=0)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The number of tokens of both rows of each pair."""
        prompt, chosen, rejected = (
            [end - start for start, end in pairwise(ends)] for _, ends in self.parts.values()
        )
        return [(p + c, p + r) for p, c, r in zip(prompt, chosen, rejected, strict=True)]


def dataset_of(rows: TrainingRows) -> Any:
    """Return rows as a `datasets.Dataset`, which shares the table's memory without a copy."""
    table = rows.table
    columns = {"input_ids": (table.input_ids, table.ends), "labels": (table.labels, table.ends)}
    whole = _dataset(columns)
    numbers = rows.numbers.tolist()
    return whole if numbers == list(range(len(table))) else whole.select(numbers)


def dataset_of_pairs(pairs: PairTable) -> Any:
    """Return pairs as a `datasets.Dataset`, as `dataset_of` does, with empty text for TRL."""
    columns = {f"row_{part}": column for part, column in pairs.parts.items()}
    return _dataset(columns, dict.fromkeys(pairs.parts, [""] * len(pairs)))


def _dataset(
    columns: dict[str, tuple[array[int], array[int]]], more: dict[str, list[str]] | None = None
) -> Any:
    import pyarrow as pa
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint
    from datasets.table import InMemoryTable

    def column(values: array[int], kind: pa.DataType) -> pa.Array:
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])

    lists = {
        name: pa.LargeListArray.from_arrays(column(ends, pa.int64()), column(values, pa.int32()))
        for name, (values, ends) in columns.items()
    }
    # The default fingerprint would hash a copy of all rows; nothing is cached under it here.
    table = InMemoryTable(pa.table({**lists, **(more or {})}))
    return Dataset(table, fingerprint=generate_random_fingerprint())
