"""Reads rows of any source through `datasets`, checks every one, and cuts what is too long."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline import builtin
from pipeline.errors import InputError
from pipeline.identity import cache_folder, local_digest, local_file
from pipeline.recipe import LOCAL_SUFFIXES, Source
from pipeline.render import Renderer
from pipeline.tasks import Example, PreferencePair, RowError, example_of, preference_of

Read = TypeVar("Read")
_LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


@dataclass(frozen=True)
class TokenRow:
    """A row as tokens.

    Attributes:
        row_id: position in the source, from 0.
        prompt: prompt ids.
        answer: ids of the reference answer with its end-of-turn token, perhaps cut at the end.
        example: the text it came from, its prompt perhaps cut.
        room: most answer tokens beside this prompt.
        whole: whether the answer is not cut.
    """

    row_id: int
    prompt: list[int]
    answer: list[int]
    example: Example
    room: int = sys.maxsize
    whole: bool = True


def load_examples(source: dict[str, Any] | Source, task: str) -> list[Example]:
    """Read a source's rows as examples of a task.

    Raises:
        InputError: for a source that cannot be read, is empty, or has a malformed row; the file,
            line and field are named.
    """
    return _read_each(_source(source), lambda row: example_of(task, row))


def load_preferences(source: dict[str, Any] | Source, task: str) -> list[PreferencePair]:
    """Read a source's rows as preference pairs.

    Raises:
        InputError: as `load_examples`.
    """
    return _read_each(_source(source), lambda row: preference_of(task, row))


def fit_prompt(
    example: Example, renderer: Renderer, *, max_length: int | None
) -> tuple[Example, list[int], int] | None:
    """Return the example, its prompt cut to fit, its prompt ids, and the room for answer tokens.

    None when the prompt stays over `max_prompt_length` or leaves no room within `max_length`.
    """
    fitted = renderer.fit(example)
    prompt = renderer.prompt_ids(fitted)
    room = sys.maxsize if max_length is None else max_length - len(prompt)
    return (fitted, prompt, room) if room > 0 and renderer.fits(prompt) else None


def tokenise(
    examples: list[Example], renderer: Renderer, *, max_length: int | None
) -> tuple[list[TokenRow], dict[str, int]]:
    """Turn examples into token rows of at most `max_length` tokens.

    Prompts are cut as the renderer cuts them. One that is still too long, or leaves no room for an
    answer token, is dropped; an answer that does not fit is cut at the end, and so has no
    end-of-turn label.

    Returns:
        The rows, and counts: rows, dropped, cut, prompts_cut.

    Raises:
        InputError: when no row is left.
    """
    rows, prompts_cut = [], 0
    for row_id, whole in enumerate(examples):
        fitted = fit_prompt(whole, renderer, max_length=max_length)
        if fitted is None:
            continue
        example, prompt, room = fitted
        answer = renderer.answer_ids(example, example.reference)
        rows.append(TokenRow(row_id, prompt, answer[:room], example, room, len(answer) <= room))
        prompts_cut += example is not whole
    if not rows:
        raise InputError(
            f"all {len(examples)} prompts are too long (max_length {max_length}, max_prompt_length "
            f"{renderer.max_prompt_length}) and leave no room for an answer; raise these limits"
        )
    cut = sum(not row.whole for row in rows)
    dropped = len(examples) - len(rows)
    return rows, {"rows": len(rows), "dropped": dropped, "cut": cut, "prompts_cut": prompts_cut}


def describe_losses(
    counts: dict[str, int], *, max_length: int | None, max_prompt_length: int | None
) -> str | None:
    """Return a sentence about dropped and cut rows, or None when there are none."""
    rows = counts["rows"]
    parts = []
    if counts["dropped"]:
        parts.append(
            f"{counts['dropped']} of {rows + counts['dropped']} rows dropped: the prompt is over "
            f"max_prompt_length ({max_prompt_length}) or leaves no room in max_length "
            f"({max_length})"
        )
    if counts["cut"]:
        parts.append(f"{counts['cut']} of {rows} rows cut in the answer at max_length {max_length}")
    if counts.get("chosen_cut"):
        parts.append(
            f"{counts['chosen_cut']} of these in the chosen answer, which then has no end to prefer"
        )
    if counts["prompts_cut"]:
        parts.append(prompts_cut(counts["prompts_cut"], rows, max_prompt_length))
    return "; ".join(parts) or None


def prompts_cut(count: int, rows: int, max_prompt_length: int | None) -> str:
    """Return a sentence about cut prompts."""
    return f"{count} of {rows} prompts cut to max_prompt_length {max_prompt_length}"


def _source(source: dict[str, Any] | Source) -> Source:
    return source if isinstance(source, Source) else Source.model_validate(source)


def _read_each(source: Source, read: Callable[[dict[str, Any]], Read]) -> list[Read]:
    items = []
    try:
        for row in _rows(source):
            items.append(read(row))
    except RowError as error:
        place = _place(source, len(items))
        raise InputError(f"{place}: field {error.field!r} {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(_damaged_line(source.path) or f"{source.source}: {error}") from None
    if not items:
        raise InputError(f"{source.source}: there are no rows in it")
    return items


def _place(source: Source, position: int) -> str:
    """Where a row stands, as a person would look for it."""
    path = source.path
    if path is not None and path.suffix == ".jsonl":
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            position -= bool(line.strip())
            if position < 0:
                return f"{path}:{number}"
    return f"{source.source}, row {position + 1}"


def _rows(source: Source) -> Iterable[dict[str, Any]]:
    if source.builtin is not None:
        return builtin.builtin_rows(source.builtin, source.split or "train", limit=source.limit)
    dataset = _load(source)
    if source.limit is not None:
        dataset = dataset.select(range(min(source.limit, len(dataset))))
    return dataset


def _load(source: Source) -> Any:
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    path = source.path if source.file is None else local_file(source)
    try:
        if path is None:
            return datasets.load_dataset(
                source.source, source.name, split=source.split, revision=source.revision
            )
        # datasets knows its cached files by path and time; ours lie under what they hold.
        cache = str(cache_folder() / "rows" / local_digest(path)[:16])
        if path.is_dir():
            return datasets.load_dataset(
                str(path), source.name, split=source.split, cache_dir=cache
            )
        loader = _LOADERS.get(path.suffix)
        if loader is None:
            raise InputError(f"{path}: not a {', '.join(LOCAL_SUFFIXES)} file")
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        files = {"train": str(path)}
        return datasets.load_dataset(loader, data_files=files, split="train", cache_dir=cache)
    except DatasetGenerationError as error:
        raise InputError(_damaged_line(path) or f"{source.source}: {_cause(error)}") from None
    except (DatasetNotFoundError, ValueError, FileNotFoundError) as error:
        raise InputError(f"{source.source}: {_cause(error)}") from None
    except ConnectionError as error:
        raise InputError(
            f"{source.source}: the hub cannot be reached ({error}); use a local file instead"
        ) from None


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def _damaged_line(path: Path | None) -> str | None:
    """Name the first line of a JSONL file that `datasets` could not read, and why."""
    if path is None or path.suffix != ".jsonl":
        return None
    kinds: dict[str, tuple[type, int]] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            return f"{path}:{number}: not UTF-8 text"
        except ValueError as error:
            return f"{path}:{number}: not valid JSON ({error})"
        if not isinstance(row, dict):
            return f"{path}:{number}: a row must be a JSON object, not {type(row).__name__}"
        for field, value in row.items():
            if value is None:
                continue
            first, line_number = kinds.setdefault(field, (type(value), number))
            if type(value) is not first:
                return (
                    f"{path}:{number}: field {field!r} is {type(value).__name__}, but "
                    f"{first.__name__} on line {line_number}"
                )
    return None
