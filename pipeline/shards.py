"""Row-writing that survives a stop and does not depend on the number of processes.

Finished rows are written to files in `shards/` every few seconds. After a stop, rows found there
are not made again. When all are done the main process joins them, in row order, into one file.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline import artifact
from pipeline.step import StepRun

Item = TypeVar("Item")
Row = dict[str, Any]
_SECONDS_BETWEEN_SHARDS = 10.0


def write_in_shards(
    step: StepRun,
    items: Iterable[Item],
    make: Callable[[Sequence[Item]], Iterator[Row]],
    *,
    key: Callable[[Item], tuple[int, ...]],
    size: Callable[[Item], int],
    row_key: Callable[[Row], tuple[int, ...]],
    tokens: Callable[[Row], int],
    file_name: str,
) -> list[Row]:
    """Make one row per item and write them to `step.directory/file_name`.

    Args:
        step: the running step.
        items: what rows are made of.
        make: turns items, which it gets by falling size, into rows, which it gives in any order.
        key: an item's place in the final order.
        size: how many tokens an item takes at most.
        row_key: as `key`, of a row.
        tokens: how many tokens of a row the model wrote.
        file_name: the joined file.

    Returns:
        All rows in key order, in every process.
    """
    joined = step.directory / file_name
    folder = step.directory / "shards"
    if not joined.exists():
        done = {row_key(row) for row in _read_shards(folder)}
        step.state.wait_for_everyone()  # nobody writes before everybody has read
        pending = [item for item in items if key(item) not in done]
        pending.sort(key=lambda item: (-size(item), key(item)))
        mine = pending[step.state.process_index :: step.state.num_processes]
        made = _told(step, make(mine), of=len(mine), before=len(done), tokens=tokens)
        _write_shards(folder, made, row_key)
        step.state.wait_for_everyone()
        if step.state.is_main_process:
            artifact.write_rows(joined, sorted(_read_shards(folder), key=row_key))
            shutil.rmtree(folder, ignore_errors=True)
        step.state.wait_for_everyone()
    return artifact.read_rows(joined)


def similar(
    items: Sequence[Item], size: Callable[[Item], int], budget: int
) -> Iterator[tuple[Sequence[Item], int]]:
    """Cut items, by falling size, where they are half as large as those before.

    Returns:
        The groups, each with how many of its items keep `budget` tokens at once, at least one.
    """
    start = 0
    while start < len(items):
        largest = max(size(items[start]), 1)
        end = start
        while end < len(items) and 2 * size(items[end]) > largest:
            end += 1
        end = max(end, start + 1)
        yield items[start:end], max(budget // largest, 1)
        start = end


def _write_shards(
    folder: Path, rows: Iterator[Row], row_key: Callable[[Row], tuple[int, ...]]
) -> None:
    """Write rows to files as they come; what is finished is kept whatever happens."""
    unwritten: list[Row] = []
    written = time.monotonic()

    def write() -> None:
        name = "-".join(str(part) for part in row_key(unwritten[0]))
        artifact.write_rows(folder / f"{name}.jsonl", unwritten)
        unwritten.clear()

    try:
        for row in rows:
            unwritten.append(row)
            if time.monotonic() - written >= _SECONDS_BETWEEN_SHARDS:
                write()
                written = time.monotonic()
    finally:
        if unwritten:
            write()


def _told(
    step: StepRun, rows: Iterator[Row], *, of: int, before: int, tokens: Callable[[Row], int]
) -> Iterator[Row]:
    """Pass rows on and tell the progress; other processes are taken to be as far as this one."""
    processes = step.state.num_processes
    total = before + of * processes
    began, count = time.monotonic(), 0
    step.progress(before, total, "rows")
    for number, row in enumerate(rows, 1):
        count += tokens(row) * processes
        rate = count / max(time.monotonic() - began, 1e-9)
        step.progress(before + number * processes, total, f"rows, {rate:,.0f} tokens/s")
        yield row


def _read_shards(folder: Path) -> list[Row]:
    return [row for path in sorted(folder.glob("*.jsonl")) for row in artifact.read_rows(path)]
