"""Writes generated rows so that an interrupted step can resume, with any number of processes.

Finished rows go into files in `shards/` every few seconds, and rows found there after an
interruption are not generated again. Once all are done, the main process merges them into one file,
in row order. Rows are not kept in memory: they are read from disk one at a time.

Every process is dealt a share of the rows. One that is done with its share takes rows from the end
of the share that is furthest behind (`_share_out`), so that a slow process decides nothing. A share
is worked on in one go, since batches that end together would leave a device half idle at each end.
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
    at_once: int | None = None,
) -> Sequence[Row]:
    """Make one row per item and write them to `step.directory/file_name`.

    Args:
        step: the running step.
        items: the inputs, one per row.
        make: turns items, sorted by decreasing size, into rows, yielded in any order. It is called
            again for items taken from other processes, and closed early if they take some of its.
        key: an item's sort key in the final order.
        size: the most tokens an item can take.
        row_key: the same key, computed from a row.
        tokens: how many tokens of a row the model generated.
        file_name: the merged file.
        at_once: how many items `make` works on at a time; by default what `batch_tokens` hold.

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
        share = pending[step.state.process_index :: step.state.num_processes]
        groups = length_buckets(share, size, step.runtime_options["batch_tokens"])
        most = max((min(len(group), fitting) for group, fitting in groups), default=1)
        rate, written = Rate(at_once=most), step.counter()
        made = _share_out(step, pending, make, key, row_key, at_once=at_once or most)
        made = _with_progress(
            step, made, rate, written, of=len(pending), before=len(done), tokens=tokens
        )
        mine = _write_shards(folder, made, row_key, writer=step.state.process_index)
        if rate.windows:
            step.metrics["tokens_per_second"] = rate.figures()
        step.wait_for_all()
        _note_shares(step, mine)
        if step.state.is_main_process:
            _join(folder, joined, row_key, expected=len(items))
            shutil.rmtree(folder, ignore_errors=True)
        step.state.wait_for_everyone()
    return cast(Sequence[Row], artifact.StoredRows(joined))


def _share_out(
    step: StepContext,
    pending: Sequence[Item],
    make: Callable[[Sequence[Item]], Iterator[Row]],
    key: Callable[[Item], tuple[int, ...]],
    row_key: Callable[[Row], tuple[int, ...]],
    *,
    at_once: int,
) -> Iterator[Row]:
    """Make the rows of this process's share, then what is left of the others'.

    Two counters per share, in the store of the process group, say how many rows its owner has made
    and how many others have taken from its end. Those that its owner may be working on are left to
    it. The owner ends where they begin; a row that both have made is stored twice and joined once.
    """
    processes, me = step.state.num_processes, step.state.process_index
    shares = [pending[first::processes] for first in range(processes)]
    made, taken = ([step.counter() for _ in shares] for _ in range(2))
    mine, ready, in_order = [key(item) for item in shares[me]], set(), 0
    for row in make(shares[me]):
        yield row
        made[me](1)
        ready.add(row_key(row))
        while in_order < len(mine) and mine[in_order] in ready:
            in_order += 1
        if in_order >= len(mine) - taken[me](0):
            break
    made[me](len(mine) - made[me](0))  # whatever is not made by now has been taken
    while True:
        left = [
            len(share) - made[owner](0) - taken[owner](0) - at_once
            for owner, share in enumerate(shares)
        ]
        behind = max(range(processes), key=left.__getitem__)
        if left[behind] <= 0:
            return
        count = math.ceil(left[behind] / processes)
        end = max(len(shares[behind]) - taken[behind](count) + count, 0)
        yield from make(shares[behind][max(end - count, 0) : end])


def _join(
    folder: Path, joined: Path, row_key: Callable[[Any], tuple[int, ...]], *, expected: int
) -> None:
    """Merge the lines of all shards into one file, in key order, each row once."""
    shards = [artifact.StoredRows(path) for path in sorted(folder.glob("*.jsonl"))]
    found = {
        row_key(row): (shard, number)
        for shard, rows in enumerate(shards)
        for number, row in enumerate(rows)
    }
    order = [found[key] for key in sorted(found)]
    if len(order) != expected:
        raise StepFailedError(
            f"{expected} rows were written, but the main process finds {len(order)} of them: the "
            "processes do not see each other's files; put --runs on a shared file system and run "
            "the same command again"
        )
    with artifact.atomic_file(joined) as file:
        for shard, number in order:
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
    folder: Path, rows: Iterator[Row], row_key: Callable[[Row], tuple[int, ...]], *, writer: int
) -> int:
    """Write rows to files as they finish, including those finished when `rows` raises.

    Returns:
        How many.
    """
    unwritten: list[Row] = []
    count, written = 0, time.monotonic()

    def write() -> None:
        # Named by its first row, so that later attempts do not reuse a name, and by its process:
        # two may make the same row.
        name = "-".join(str(part) for part in (*row_key(unwritten[0]), writer))
        artifact.write_rows(folder / f"{name}.jsonl", cast(Any, unwritten))
        unwritten.clear()

    try:
        for row in rows:
            unwritten.append(row)
            count += 1
            if time.monotonic() - written >= _SECONDS_BETWEEN_SHARDS:
                write()
                written = time.monotonic()
    finally:
        if unwritten:
            write()
    return count


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
    step: StepContext, rows: Iterator[Row], rate: Rate, written: Callable[[int], int], *,
    of: int, before: int, tokens: Callable[[Row], int],
) -> Iterator[Row]:  # fmt: skip
    """Yield rows and report progress; tokens are counted here, as many for every process."""
    processes = step.state.num_processes
    total = before + of
    began = time.monotonic()
    step.progress(before, total, "rows")
    for row in rows:
        now = time.monotonic()
        rate.add(tokens(row) * processes, now)
        so_far = rate.last[2] / max(now - began, 1e-9)
        step.progress(min(before + written(1), total), total, f"rows, {so_far:,.0f} tokens/s")
        yield row


def _read_shards(folder: Path) -> Iterator[Any]:
    for path in sorted(folder.glob("*.jsonl")):
        yield from artifact.StoredRows(path)
