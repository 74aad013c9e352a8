"""AlpacaEval's own file formats: annotations, model outputs, difficulties, gamed baselines."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

from eval.graders.length_control import as_gamed
from pipeline.errors import InputError
from pipeline.steps.artifact import atomic_file

# The fields below are checked; the files of others may have more.
Entry = dict[str, Any]
_OUTPUT_FIELDS = ("dataset", "instruction", "output", "generator")
_PAIR_FIELDS = ("instruction", "output_1", "output_2")
_ANNOTATION_FIELDS = (*_PAIR_FIELDS, "dataset", "generator_1", "generator_2", "annotator")


def read_annotations(path: str | Path) -> list[Entry]:
    """Read an official annotation file, JSON or gzipped JSON: one dict per judged instruction.

    `output_1` is the baseline's answer, `output_2` the model's; `preference` may be null.

    Raises:
        InputError: If the file cannot be read or an entry is malformed.
    """
    return _check_entries(path, _read_json(path), _PAIR_FIELDS, has_preference=True)


def read_model_outputs(path: str | Path) -> list[Entry]:
    """Read a `model_outputs.json`; that of the baseline has AlpacaEval's instructions in order.

    Raises:
        InputError: If the file cannot be read, or an entry lacks its instruction or output.
    """
    return _check_entries(path, _read_json(path), ("instruction", "output"))


def write_annotations(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write an annotation file for the official tool; gzipped if the name ends in .gz.

    Raises:
        InputError: If an entry lacks a field (`raw_completion` may be null) or is not JSON-able.
    """
    filled = [{**row, "raw_completion": row.get("raw_completion")} for row in rows]
    _write_json(path, _check_entries(path, filled, _ANNOTATION_FIELDS, has_preference=True))


def write_model_outputs(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a `model_outputs.json` for the official tool; gzipped if the name ends in .gz.

    Raises:
        InputError: If an entry lacks dataset, instruction, output or generator.
    """
    _write_json(path, _check_entries(path, [dict(row) for row in rows], _OUTPUT_FIELDS))


def _read_json(path: str | Path) -> Any:
    try:
        data = Path(path).read_bytes()
        return json.loads(gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data)
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to be an AlpacaEval file") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} must be a JSON file, plain or gzipped: {error}") from None


def _check_entries(
    path: str | Path, rows: Any, fields: Sequence[str], *, has_preference: bool = False
) -> list[Entry]:
    if not isinstance(rows, list):
        raise InputError(f"{path} must be a list of entries, as AlpacaEval's files are")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{path}: entry {number} is {_shown(row)!r}, valid is an object")
        for field in fields:
            if not isinstance(row.get(field), str):
                value = _shown(row.get(field))
                raise InputError(f"{path}: entry {number}: {field} is {value}, valid is a text")
        if has_preference and not _is_preference(row.get("preference", "missing")):
            value = _shown(row.get("preference", "missing"))
            raise InputError(
                f"{path}: entry {number}: preference is {value}, valid "
                "is 1 (output_1 better) to 2 (output_2 better), or null for no verdict"
            )
    return rows


def _shown(value: Any) -> str:
    """A value for an error message, cut short; for a list or object only its type."""
    is_large = isinstance(value, (list, dict))
    return type(value).__name__ if is_large else str(value)[:80]


def _is_preference(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return value is None
    # 0 is how older files write a tie.
    return isinstance(value, float | int) and (value == 0 or 1 <= value <= 2 or math.isnan(value))


def _write_json(path: str | Path, rows: list[Entry]) -> None:
    entries = []
    for number, row in enumerate(rows):
        # NaN is not valid JSON; it is the only value that differs from itself.
        if row.get("preference") != row.get("preference"):
            row = {**row, "preference": None}
        try:
            entries.append(json.dumps(row, indent=2, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: entry {number} cannot be written as JSON: {error}") from None
    text = "[\n" + ",\n".join(entries) + "\n]\n"
    with atomic_file(Path(path)) as file:
        if Path(path).suffix == ".gz":
            # No timestamp, so that equal rows give equal files.
            cast(TextIO, file).buffer.write(gzip.compress(text.encode(), mtime=0))
        else:
            file.write(text)


def read_difficulties(path: str | Path, instructions: Sequence[str]) -> dict[str, float]:
    """Read instruction difficulties, which are stored by position, and key them by text.

    Args:
        path: A CSV with the columns `index` and `instruction_difficulty`; in `df_gamed.csv`, which
            has every index twice, the first one counts.
        instructions: All instructions in AlpacaEval's order, from the baseline's
            `read_model_outputs`. A subset is selected by text when scoring, not here.

    Raises:
        InputError: If the file cannot be read or does not belong to these instructions.
    """
    by_index: dict[float, float] = {}
    for index, difficulty in _read_columns(path, ("index", "instruction_difficulty")):
        by_index.setdefault(index, difficulty)
    distinct = len(set(instructions))
    if set(by_index) != set(range(distinct)) or distinct < len(instructions):
        raise InputError(
            f"{path} has {len(by_index)} difficulties, but there are {len(instructions)} "
            f"instructions ({distinct} different): give all of AlpacaEval's, in its order"
        )
    if not all(map(math.isfinite, by_index.values())):
        raise InputError(
            f"{path} has an empty or infinite cell in instruction_difficulty: fill it in"
        )
    return {instruction: by_index[i] for i, instruction in enumerate(instructions)}


def read_gamed(path: str | Path) -> list[tuple[float, ...]]:
    """Read the gamed baselines from `df_gamed.csv`, in file order, without unjudged rows.

    Returns:
        Rows of (std_delta_len, instruction_difficulty, preference in [0, 1]), (G, 3).

    Raises:
        InputError: If the file cannot be read, has no rows, or a number is missing.
    """
    names = ("std_delta_len", "instruction_difficulty", "preference")
    rows = [tuple(row) for row in _read_columns(path, names) if not math.isnan(row[2])]
    try:
        as_gamed(rows)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    return rows


def _read_columns(path: str | Path, names: Sequence[str]) -> list[list[float]]:
    """Return columns of a CSV as numbers, empty cells as NaN."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} must be a CSV file: {error}") from None
    numbers = []
    for line, row in rows:
        try:
            # pandas writes an empty name for its index column.
            cells = [row[""] if name == "index" and "" in row else row[name] for name in names]
            numbers.append([float(cell or "nan") for cell in cells])
        except (KeyError, ValueError) as error:
            valid = f"valid are numbers in the columns {', '.join(names)}"
            raise InputError(f"{path}:{line}: {error}; {valid}") from None
    return numbers
