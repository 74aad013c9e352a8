"""Training rows in compact arrays: 4 bytes per input token and 4 per label.

Python lists would take ten times as much, in every process, for as long as training lasts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.preflight import Row
from pipeline.lazy import Lazy

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


def dataset_of(rows: TrainingRows) -> Any:
    """Return rows as a `datasets.Dataset`, which shares the table's memory without a copy."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint
    from datasets.table import InMemoryTable

    def column(values: array[int], kind: pa.DataType) -> pa.Array:
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])

    table = rows.table
    ends = column(table.ends, pa.int64())
    columns = {
        name: pa.LargeListArray.from_arrays(ends, column(values, pa.int32()))
        for name, values in (("input_ids", table.input_ids), ("labels", table.labels))
    }
    # The default fingerprint would hash a copy of all rows; nothing is cached under it here.
    whole = Dataset(InMemoryTable(pa.table(columns)), fingerprint=generate_random_fingerprint())
    numbers = rows.numbers.tolist()
    return whole if numbers == list(range(len(table))) else whole.select(numbers)
