"""Strict readers of JSONL, JSON, CSV and Parquet files, which yield each row with its location.

The readers of `datasets` are not used: they drop lone surrogates, read text such as NA as null,
force one type per column, cannot name a bad line, and crash the process on deeply nested JSON.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.recipe.schema import ROW_FILES

PlacedRow = tuple[str, dict[str, Any]]
_LONGEST_CELL = 2**31 - 1


def rows_of_file(path: Path) -> Iterator[PlacedRow]:
    """Yield a file's rows in order, each with its location, such as 'rows.jsonl:3'.

    Raises:
        InputError: if the file is empty or cannot be parsed; it names the line.
    """
    reader = READERS.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: not a {', '.join(READERS)} file")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        yield from reader(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield every line, including its line end, with its location."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8-sig")  # a mark may stand where files were joined
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number}: not UTF-8 text ({error.reason}); save the file as UTF-8"
                ) from None
            yield f"{path}:{number}", text


def _jsonl_rows(path: Path) -> Iterator[PlacedRow]:
    for place, line in _lines(path):
        if line.strip():
            yield place, _object(place, _parsed(place, line))


def _json_rows(path: Path) -> Iterator[PlacedRow]:
    """Yield the entries of a list, or one object per line, as in many .json files."""
    first = next((line for _, line in _lines(path) if line.strip()), "")
    if not first.lstrip().startswith("["):
        yield from _jsonl_rows(path)
        return
    text = "".join(line for _, line in _lines(path))
    entries = _parsed(str(path), text, way_out="write one list of JSON objects, or one a line")
    for number, entry in enumerate(entries, start=1):
        place = f"{path}, row {number}"
        yield place, _object(place, entry)


def _parsed(place: str, text: str, *, way_out: str = "write one JSON object a line") -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        reason = "nested too deeply"
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, column {error.colno}"
        if error.lineno > 1:
            several = text.strip().count("\n")
            reason = f"{error.msg}, line {error.lineno}" if several else "the line ends too early"
    except ValueError as error:
        reason = str(error).partition(";")[0]
    raise InputError(f"{place}: not valid JSON ({reason}); {way_out}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} is given twice")
    return found


def _object(place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        way_out = "; call a file that is one list .json" if isinstance(row, list) else ""
        given = "null" if row is None else type(row).__name__
        raise InputError(f"{place}: a row must be a JSON object, {{...}}, not {given}{way_out}")
    return row


def _csv_rows(path: Path) -> Iterator[PlacedRow]:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    head: list[str] | None = None
    begin = 1
    try:
        for cells in reader:
            place, begin = f"{path}:{begin}", reader.line_num + 1
            if not cells:
                continue
            if head is None:
                head = cells
                if twice := [name for name in head if head.count(name) > 1]:
                    raise InputError(f"{place}: two columns are named {twice[0]!r}; rename one")
            elif len(cells) != len(head):
                raise InputError(
                    f"{place}: {len(cells)} cells in {len(head)} columns; put a cell that holds a "
                    "comma, a quote or a line end in double quotes"
                )
            else:
                yield place, dict(zip(head, cells, strict=True))
    except csv.Error as error:
        hint = ": a quote is opened, and never closed" if "end of data" in str(error) else ""
        raise InputError(f"{path}:{begin}: not valid CSV: {error}{hint}") from None


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", without_nulls(row)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: not a complete Parquet file, read up to row {number} ({reason}); write the "
            "file again"
        ) from None


def without_nulls(value: Any) -> Any:
    """A table's value without the null fields that it only has because other rows have them."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[Path], Iterator[PlacedRow]]] = dict(
    zip(ROW_FILES, (_jsonl_rows, _json_rows, _csv_rows, _parquet_rows), strict=True)
)
