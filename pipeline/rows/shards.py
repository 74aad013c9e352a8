"""Writes generated rows so that an interrupted step can resume, with any number of processes.

Finished rows go into files in `shards/` every few seconds, and rows found there after an
interruption are not generated again. Once all are done, the main process merges them into one file,
in row order. Rows are not kept in memory: they are read from disk one at a time.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

from pipeline.errors import StepFailedError
from pipeline.steps import artifact
from pipeline.steps.context import StepContext
from pipeline.steps.record import Speed

Item = TypeVar("Item")
Row = TypeVar("Row", bound=Mapping[str, Any])
_SECONDS_BETWEEN_SHARDS = 10.0
_WINDOW_SECONDS = 10.0


def write_in_shards(
    step: StepContext,
    items: Iterable[Item],
    make: Callable[[Sequence[Item]], Iterator[Row]],
    *,
    key: Callable[[Item], tuple[int, ...]],
    size: Callable[[Item], int],
    row_key: Callable[[Row], tuple[int, ...]],
    tokens: Callable[[Row], int],
    file_name: str,
) -> Sequence[Row]:
    """Make one row per item and write them to `step.directory/file_name`.

    Args:
        step: the running step.
        items: the inputs, one per row.
        make: turns items, sorted by decreasing size, into rows, yielded in any order.
        key: an item's sort key in the final order.
        size: the most tokens an item can take.
        row_key: the same key, computed from a row.
        tokens: how many tokens of a row the model generated.
        file_name: the merged file.

    Returns:
        All rows in key order, in every process; each is read from disk when it is accessed.
    """
    joined = step.directory / file_name
    folder = step.directory / "shards"
    if not joined.exists():
        items = list(items)
        done = {row_key(row) for row in _read_shards(folder)}
        if step.state.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        step.state.wait_for_everyone()  # no process may write before all have read
        pending = [item for item in items if key(item) not in done]
        pending.sort(key=lambda item: (-size(item), key(item)))
        # Every n-th of the sorted items, so that all processes get a similar mix of lengths.
        mine = pending[step.state.process_index :: step.state.num_processes]
        groups = length_buckets(mine, size, step.runtime_options["batch_tokens"])
        rate = Rate(at_once=max((min(len(group), most) for group, most in groups), default=1))
        made = _with_progress(step, make(mine), rate, of=len(mine), before=len(done), tokens=tokens)
        _write_shards(folder, made, row_key)
        if rate.windows:
            step.metrics["tokens_per_second"] = rate.figures()
        step.wait_for_all()
        _note_shares(step, len(mine))
        if step.state.is_main_process:
            _join(folder, joined, row_key, expected=len(items))
            shutil.rmtree(folder, ignore_errors=True)
        step.state.wait_for_everyone()
    return cast(Sequence[Row], artifact.StoredRows(joined))


def _join(
    folder: Path, joined: Path, row_key: Callable[[Any], tuple[int, ...]], *, expected: int
) -> None:
    """Merge the lines of all shards into one file, in key order."""
    shards = [artifact.StoredRows(path) for path in sorted(folder.glob("*.jsonl"))]
    order = sorted(
        (row_key(row), shard, number)
        for shard, rows in enumerate(shards)
        for number, row in enumerate(rows)
    )
    if len(order) != expected:
        raise StepFailedError(
            f"{expected} rows were written, but the main process finds {len(order)} of them: the "
            "processes do not see each other's files; put --runs on a shared file system and run "
            "the same command again"
        )
    with artifact.atomic_file(joined) as file:
        for _, shard, number in order:
            file.write(shards[shard].line(number).decode())


def _note_shares(step: StepContext, mine: int) -> None:
    """Record how many rows each process generated."""
    if step.state.num_processes > 1:
        from accelerate.utils import gather_object

        step.metrics["rows_of_each_process"] = gather_object([mine])


def length_buckets(
    items: Sequence[Item], size: Callable[[Item], int], budget: int
) -> Iterator[tuple[Sequence[Item], int]]:
    """Split items, sorted by decreasing size, into groups of sizes within a factor of two.

    Returns:
        The groups, each with its batch size: how many items fit into `budget` tokens, at least one.
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
    """Write rows to files as they finish, including those finished when `rows` raises."""
    unwritten: list[Row] = []
    written = time.monotonic()

    def write() -> None:
        # Named by its first row, so that neither other processes nor later attempts reuse a name.
        name = "-".join(str(part) for part in row_key(unwritten[0]))
        artifact.write_rows(folder / f"{name}.jsonl", cast(Any, unwritten))
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


class Rate:
    """Tokens per second of finished rows: the mean and the best window.

    Rows of one batch finish at about the same time. The clock therefore starts once `at_once` rows
    are done (the model is loaded and every slot was filled once), and a window lasts at least that
    many rows and `_WINDOW_SECONDS`; a shorter one would measure when rows happen to finish.
    """

    def __init__(self, at_once: int):
        self.at_once = at_once
        self.last = (0.0, 0, 0)  # time, rows and tokens done
        self.marks: list[tuple[float, int, int]] = []  # the same, at the end of each window

    @property
    def windows(self) -> int:
        """The number of complete windows."""
        return max(len(self.marks) - 1, 0)

    def add(self, tokens: int, now: float) -> None:
        """Count a row finished at `now`, in seconds of a monotonic clock."""
        _, rows, before = self.last
        self.last = (now, rows + 1, before + tokens)
        began, first, _ = self.marks[-1] if self.marks else (-math.inf, 0, 0)
        if now - began >= _WINDOW_SECONDS and rows + 1 - first >= self.at_once:
            self.marks.append(self.last)

    def figures(self) -> Speed:
        """Mean and best tokens per second; needs a complete window."""
        best = max(self._between(*ends) for ends in pairwise(self.marks))
        mean = self._between(self.marks[0], self.last)
        return {"mean": round(mean, 1), "best": round(best, 1), "windows": self.windows}

    @staticmethod
    def _between(start: tuple[float, int, int], end: tuple[float, int, int]) -> float:
        return (end[2] - start[2]) / max(end[0] - start[0], 1e-9)


def _with_progress(
    step: StepContext, rows: Iterator[Row], rate: Rate, *,
    of: int, before: int, tokens: Callable[[Row], int],
) -> Iterator[Row]:  # fmt: skip
    """Yield rows and report progress, assuming that all processes are equally far."""
    processes = step.state.num_processes
    total = before + of * processes
    began = time.monotonic()
    step.progress(before, total, "rows")
    for number, row in enumerate(rows, 1):
        now = time.monotonic()
        rate.add(tokens(row) * processes, now)
        so_far = rate.last[2] / max(now - began, 1e-9)
        step.progress(before + number * processes, total, f"rows, {so_far:,.0f} tokens/s")
        yield row


def _read_shards(folder: Path) -> Iterator[Any]:
    for path in sorted(folder.glob("*.jsonl")):
        yield from artifact.StoredRows(path)
