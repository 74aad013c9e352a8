"""Processes that `accelerate launch` starts: their command, environment, and end.

They hold a pipe from the parent as their standard input. It ends with the parent, however that
ends, and they end with it (`pipeline.step.end_with_parent`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from pipeline import shipped
from pipeline.lock import held_by
from pipeline.step import LIFELINE

# glibc gives large blocks back to the kernel and takes them again, zeroed page by page, at every
# tensor. Keeping them makes training on a CPU faster (benchmarks/allocator.py prints by how much).
CPU_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
_STOP_SECONDS = 8


def command(launch: shipped.Launch, spec_files: list[Path]) -> list[str]:
    """The command that runs steps, as `bashrac plan` prints it."""
    config = ["--config_file", str(launch.path)]
    return ["accelerate", "launch", *config, "-m", "pipeline", "step", *map(str, spec_files)]


def start(launch: shipped.Launch, spec_files: list[Path], output: IO[str]) -> Any:
    """Start what runs these steps, in a session of its own; its words go to `output`."""
    # What `accelerate launch` runs, without importing its other commands (one second).
    module = [sys.executable, "-m", "accelerate.commands.launch", *command(launch, spec_files)[2:]]
    return subprocess.Popen(
        module,
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.PIPE,
        env=environment(launch),
        start_new_session=True,
    )


def stop(process: Any, directories: list[Path]) -> None:
    """End launched processes: politely, so that they keep what they have, then for certain."""
    deadline = time.monotonic() + _STOP_SECONDS
    with contextlib.suppress(ProcessLookupError, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGTERM)
        # The launcher may end before what it has launched, which holds its step to the last.
        while process.poll() is None or any(map(held_by, directories)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    end(process)


def end(process: Any) -> None:
    """See that nothing of a launch lives on."""
    if process.poll() != 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.stdin.close()
    process.wait()


def environment(launch: shipped.Launch) -> dict[str, str]:
    """What launched processes find in their environment; the user's own goes over defaults."""
    threads = str(max((os.cpu_count() or 1) // launch.processes, 1))
    defaults = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    quiet = {"TRANSFORMERS_VERBOSITY": "warning", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # A file eval.py in the user's folder must not be taken for our package.
    fixed = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", LIFELINE: "1"}
    return {**defaults, **quiet, **(CPU_ALLOCATOR if launch.use_cpu else {}), **os.environ, **fixed}
