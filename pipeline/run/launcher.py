"""Processes that `accelerate launch` starts: their command, environment, and end.

They hold a pipe from the parent as their standard input. It ends with the parent, however that
ends, and they end with it (`pipeline.run.worker.end_with_parent`). A command that starts them
elsewhere (`--through 'srun ...'`) hands on no such pipe, only signals: what it has started ends
with a parent that is told to stop, and outlives one that is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from pipeline.errors import InputError
from pipeline.hardware.threads import ADAPT, usable_cores
from pipeline.recipe import shipped
from pipeline.run.worker import LIFELINE
from pipeline.steps.lock import held_by

# glibc gives large blocks back to the kernel and takes them again, zeroed page by page, at every
# tensor. Keeping them makes training on a CPU faster (benchmarks/allocator.py prints by how much).
CPU_ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
# Threads that wait for another spin for some 0.1 ms and then sleep. GNU's OpenMP, which torch uses
# on Linux, would spin for milliseconds, and keep the other from its core; not spinning at all slows
# down decoding, whose operations are short (benchmarks/busy.py).
CPU_WAITING = {"GOMP_SPINCOUNT": "10000"}
_STOP_SECONDS = 8
_STOP_SECONDS_THROUGH = 60  # a scheduler hands signals on at its own pace


def command(
    launch: shipped.Launch,
    spec_files: list[Path],
    through: Sequence[str] = (),
    options: Sequence[str] = (),
) -> list[str]:
    """The command that runs steps, as `bashrac plan` prints it.

    `through` are the words of a command that starts another, on each machine of the launch;
    `options` go over what the launch config says.
    """
    config = ["--config_file", str(launch.path), *options]
    steps = ["-m", "pipeline", "step", *map(str, spec_files)]
    return [*through, "accelerate", "launch", *config, *steps]


def start(
    launch: shipped.Launch,
    spec_files: list[Path],
    output: IO[str],
    through: Sequence[str] = (),
    options: Sequence[str] = (),
    *,
    jobs: int = 1,
) -> Any:
    """Start what runs these steps, in a session of its own; its words go to `output`.

    `jobs` is how many of such launches share this machine.
    """
    # What `accelerate launch` runs, without importing its other commands (one second).
    words = command(launch, spec_files, options=options)[2:]
    module = [sys.executable, "-m", "accelerate.commands.launch", *words]
    surroundings = environment(launch, jobs)
    if through:
        surroundings.pop(LIFELINE)
        if "OMP_NUM_THREADS" not in os.environ:  # those of this machine say nothing of others
            surroundings.pop("OMP_NUM_THREADS")
            surroundings.pop(ADAPT, None)
    try:
        return subprocess.Popen(
            [*through, *module],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL if through else subprocess.PIPE,
            env=surroundings,
            start_new_session=True,
        )
    except OSError as error:
        if not through:
            raise
        raise InputError(f"--through: {through[0]} does not start ({error.strerror})") from None


def stop(launched: Sequence[tuple[Any, list[Path]]]) -> None:
    """End launched processes: politely, so that they keep what they have, then for certain.

    Args:
        launched: processes, each with the folders of its steps.
    """
    patience = [
        _STOP_SECONDS_THROUGH if process.stdin is None else _STOP_SECONDS for process, _ in launched
    ]
    deadline = time.monotonic() + max(patience, default=0)
    with contextlib.suppress(KeyboardInterrupt):
        for process, _ in launched:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        # A launcher may end before what it has launched, which holds its step to the last.
        while any(p.poll() is None or any(map(held_by, folders)) for p, folders in launched):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
    for process, _ in launched:
        end(process)


def end(process: Any) -> None:
    """See that nothing of a launch lives on."""
    if process.poll() != 0:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    process.wait()


def environment(launch: shipped.Launch, jobs: int = 1) -> dict[str, str]:
    """What launched processes find in their environment; the user's own goes over defaults.

    `jobs` is how many launches share this machine.
    """
    here = launch.processes // launch.machines * jobs
    threads = str(max(usable_cores() // here, 1))
    defaults = {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    quiet = {"TRANSFORMERS_VERBOSITY": "warning", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # A file eval.py in the user's folder must not be taken for our package.
    fixed = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", LIFELINE: "1"}
    fixed |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}  # what they write is read as UTF-8
    if launch.use_cpu:
        defaults |= CPU_ALLOCATOR
        if "OMP_WAIT_POLICY" not in os.environ:  # which the count of spins would go over
            defaults |= CPU_WAITING
        # From a config of several processes accelerate does not hand this on to them.
        fixed["ACCELERATE_USE_CPU"] = "true"
        # Several processes would take each other for other programs.
        if "OMP_NUM_THREADS" not in os.environ and here == 1:
            fixed[ADAPT] = "1"
    return {**defaults, **quiet, **os.environ, **fixed}
