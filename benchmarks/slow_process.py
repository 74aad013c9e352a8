"""How much does one slow process of a launch delay the rows that all of them write?

    python benchmarks/slow_process.py [--rows 400] [--processes 4] [--slow 4]

Each row sleeps for as long as its size says, so cores decide nothing; in one process it sleeps
`--slow` times as long. Prints the seconds from the first row to the end of the step, and their
ratio to the ideal, at which all processes work until the end: with the rows dealt out once and for
all, as they were, and as they are, each process that is done taking rows from the one behind.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.rows.shards import write_in_shards  # noqa: E402
from pipeline.steps.context import StepContext, StepLaunch  # noqa: E402
from pipeline.steps.spec import StepSpec  # noqa: E402 - from this checkout

_SECONDS = 0.001  # of a row, per unit of size
_SIZES = range(40, 80)


def main() -> None:
    """Print a line for each way to deal out rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--slow", type=float, default=4, help="times that one process takes")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder is not None:
        work(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        launch = [
            "--multi_gpu", "--num_processes", str(given.processes), "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        ]  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", *launch, __file__, *sys.argv[1:],
             "--folder", folder],
            check=True, env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def work(given: argparse.Namespace) -> None:
    """Write the rows in both ways, in one of the launched processes."""
    sizes = [_SIZES[row * 7 % len(_SIZES)] for row in range(given.rows)]
    speeds = given.processes - 1 + 1 / given.slow
    ideal = sum(sizes) * _SECONDS / speeds
    # Rows that a process may be working on are left to it: one, or all there are.
    for name, at_once in (("dealt out once and for all", given.rows), ("as they are", 1)):
        step = context(given.folder / str(at_once), given.processes)
        slower = given.slow if step.state.process_index == given.processes - 1 else 1

        def make(rows: Sequence[int], slower: float = slower) -> Iterator[dict[str, Any]]:
            for row in rows:
                time.sleep(sizes[row] * _SECONDS * slower)
                yield {"id": row}

        step.state.wait_for_everyone()
        began = time.monotonic()
        written = write_in_shards(
            step, range(given.rows), make, key=lambda row: (row,), size=sizes.__getitem__,
            row_key=lambda row: (row["id"],), tokens=lambda row: 1, file_name="rows.jsonl",
            at_once=at_once,
        )  # fmt: skip
        seconds = time.monotonic() - began
        assert [row["id"] for row in written] == list(range(given.rows))
        if step.state.is_main_process:
            shares = ", ".join(map(str, step.metrics.get("rows_of_each_process", [])))
            print(
                f"{name}: {seconds:.2f} s, {seconds / ideal:.2f} of the ideal {ideal:.2f} s "
                f"(rows of each process: {shares})",
                flush=True,
            )
    step.wait_for_all()
    os._exit(0)  # the group's threads would run on for a while


def context(folder: Path, processes: int) -> StepContext:
    """A running step whose batches hold one row."""
    spec = StepSpec(
        kind="answers", run="pipeline.answers:write_answers", stage="s", seed=0, title="t",
        options={}, inputs={}, locations={}, runtime_options=cast(Any, {"batch_tokens": 1}),
    )  # fmt: skip
    return StepContext(folder, spec, StepLaunch(processes=processes, use_cpu=True))


if __name__ == "__main__":
    main()
