"""Row-writing that survives a stop and does not depend on the number of processes.

Each batch of finished rows is a file of its own in `shards/`. After a stop, rows found there are
not made again. When all are done the main process joins them, in row order, into one file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline import artifact
from pipeline.step import StepRun

Item = TypeVar("Item")
Row = dict[str, Any]


def write_in_shards(
    step: StepRun,
    items: Sequence[Item],
    make: Callable[[Sequence[Item]], list[Row]],
    *,
    key: Callable[[Item], tuple[int, ...]],
    row_key: Callable[[Row], tuple[int, ...]],
    batch_size: int,
    file_name: str,
) -> list[Row]:
    """Make one row per item, a batch at a time, and write them to `step.directory/file_name`.

    Args:
        step: the running step.
        items: what rows are made of, in the order they should be worked on.
        make: turns a batch of items into as many rows.
        key: an item's place in the final order.
        row_key: the same for a row.
        batch_size: items per batch (it does not change the result).
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
        mine = pending[step.state.process_index :: step.state.num_processes]
        for start in range(0, len(mine), batch_size):
            batch = mine[start : start + batch_size]
            name = "-".join(str(part) for part in key(batch[0]))
            artifact.write_rows(folder / f"{name}.jsonl", make(batch))
            finished = len(items) - len(pending) + (start + len(batch)) * step.state.num_processes
            step.progress(min(finished, len(items)), len(items), "rows")
        step.state.wait_for_everyone()
        if step.state.is_main_process:
            artifact.write_rows(joined, sorted(_read_shards(folder), key=row_key))
            shutil.rmtree(folder, ignore_errors=True)
        step.state.wait_for_everyone()
    return artifact.read_rows(joined)


def _read_shards(folder: Path) -> list[Row]:
    return [row for path in sorted(folder.glob("*.jsonl")) for row in artifact.read_rows(path)]
