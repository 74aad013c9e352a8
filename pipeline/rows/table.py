"""Rows to train on, held once: 4 bytes for each input token and 4 for its label.

As Python lists a token and its label take ten times as much, in every process, for as long as the
training lasts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

from pipeline.data.preflight import Row

TokenIds = dict[str, list[int]]  # input_ids and labels


@dataclass(frozen=True)
class _Place:
    """What else is known of a row; its prompt is the start of the row numbered `prompt_of`."""

    name: str
    prompt_of: int
    prompt: int
    whole: bool


class TokenTable(Sequence[Row]):
    """All rows of a step, for checking: each is put together when it is looked at."""

    def __init__(self) -> None:
        self.input_ids, self.labels = array("i"), array("i")
        self.ends = array("q", [0])
        self._places: list[_Place] = []

    def add(
        self, name: str, prompt: int, row: TokenIds, *, whole: bool, prompt_of: int | None = None
    ) -> None:
        """Add a row whose prompt should be as long, and as in the row numbered `prompt_of`."""
        self.input_ids.extend(row["input_ids"])
        self.labels.extend(row["labels"])
        place = len(self._places) if prompt_of is None else prompt_of
        self._places.append(_Place(name, place, prompt, whole))
        self.ends.append(len(self.input_ids))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        """The row as it is checked."""
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        number = range(len(self))[number]
        place, start = self._places[number], self.ends[number]
        first = self.ends[place.prompt_of]
        return Row(
            place.name,
            self.input_ids[first : first + place.prompt].tolist(),
            self.input_ids[start : self.ends[number + 1]].tolist(),
            self.labels[start : self.ends[number + 1]].tolist(),
            place.whole,
        )


class TrainingRows(Sequence[TokenIds]):
    """Rows of a table in the order to train on, some of them perhaps several times or never."""

    def __init__(self, table: TokenTable, numbers: Sequence[int]):
        self.table, self.numbers = table, array("q", numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, number: int) -> TokenIds: ...
    @overload
    def __getitem__(self, number: slice) -> list[TokenIds]: ...
    def __getitem__(self, number: int | slice) -> TokenIds | list[TokenIds]:
        """The row as it is trained on."""
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        row = self.table[self.numbers[number]]
        return {"input_ids": list(row.input_ids), "labels": list(row.labels)}

    @property
    def sizes(self) -> list[int]:
        """How many tokens each row has."""
        ends = self.table.ends
        return [ends[number + 1] - ends[number] for number in self.numbers]


def dataset_of(rows: Sequence[TokenIds]) -> Any:
    """Return the `datasets.Dataset` of rows; it reads a table's own memory and copies nothing."""
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint
    from datasets.table import InMemoryTable

    if not isinstance(rows, TrainingRows):
        return Dataset.from_list(list(rows))
    import pyarrow as pa

    def column(values: array[int], kind: pa.DataType) -> pa.Array:
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])

    table = rows.table
    ends = column(table.ends, pa.int64())
    columns = {
        name: pa.LargeListArray.from_arrays(ends, column(values, pa.int32()))
        for name, values in (("input_ids", table.input_ids), ("labels", table.labels))
    }
    # Its usual fingerprint would be made of a copy of all rows; nothing here is cached under one.
    whole = Dataset(InMemoryTable(pa.table(columns)), fingerprint=generate_random_fingerprint())
    numbers = rows.numbers.tolist()
    return whole if numbers == list(range(len(table))) else whole.select(numbers)
