"""How many threads a step computes with, on a CPU that it may share with other programs.

The threads of an operation wait for each other when it ends. If another program occupies the core
of one thread, all of them wait, thousands of times a second: on a busy machine, two threads on two
cores are slower than one (`benchmarks/busy.py` prints by how much). So a launch uses the cores that
are available to it (affinity, a container's quota), and a running step checks every few seconds how
many of them other programs leave free. If the user sets OMP_NUM_THREADS, nothing is adapted.

The number of threads decides the order of additions on a CPU, and so the last bits of results. A
step's record lists every number of threads that its last attempt used.
"""

from __future__ import annotations

import math
import os
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Set in launched processes if we, not the user, chose OMP_NUM_THREADS.
ADAPT = "BASHRAC_ADAPT_THREADS"
_SECONDS = 5.0  # between two measurements
_NOT_BUSY = (
    "idle",
    "iowait",
    "guest",
    "guest_nice",
    "steal",
)  # user time includes guests


def usable_cores() -> int:
    """How many cores this process may use: its affinity, and a container's quota, rounded up."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = container_quota()
    return cores if quota is None else min(max(math.ceil(quota), 1), cores)


def container_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """A container's CPU quota in cores, None for no limit; reads cgroups v2 and v1."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = (
                (root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):  # no cgroups, or "max"
        return None


def threads_to_use(others: float, *, cores: int, most: int) -> int:
    """How many threads to compute with; a core of which others use half is left to them.

    Args:
        others: how many cores other programs used, on average.
        cores: how many there are.
        most: how many threads may be used.
    """
    return min(max(math.ceil(cores - others - 0.5), 1), most)


class _Sample(NamedTuple):
    """The clock, the busy time of our cores, and this process's share of it, all in seconds."""

    now: float
    busy: float
    own: float
    cores: int


class Threads:
    """The threads of a process, adapted to how busy other programs keep its cores."""

    def __init__(self, most: int):
        self.most = self.count = most
        self.used = {most}
        self._last, self._measured = _measure(), time.monotonic()

    def adapt(self) -> None:
        """Set the number of threads to the number of cores that other programs leave free."""
        if time.monotonic() - self._measured < _SECONDS:
            return
        before, now = self._last, _measure()
        self._last, self._measured = now, time.monotonic()
        if before is None or now is None:
            return
        others = ((now.busy - before.busy) - (now.own - before.own)) / (now.now - before.now)
        count = threads_to_use(others, cores=now.cores, most=self.most)
        if count != self.count:
            import torch

            torch.set_num_threads(count)
            self.count = count
            self.used.add(count)


@cache
def threads_of_launch() -> Threads | None:
    """The threads of this process; None if their number is fixed."""
    return Threads(int(os.environ["OMP_NUM_THREADS"])) if ADAPT in os.environ else None


def _measure() -> _Sample | None:
    """Measure the load now; None if the system does not report it."""
    import psutil

    try:
        process, cores = psutil.Process(), psutil.cpu_times(percpu=True)
        if hasattr(process, "cpu_affinity"):  # not on macOS
            mine = process.cpu_affinity()
            if max(mine) >= len(cores):  # a container that numbers its cores differently
                return None
            cores = [cores[core] for core in mine]
        own = process.cpu_times()
    except (OSError, psutil.Error):
        return None
    busy = sum(
        seconds
        for core in cores
        for name, seconds in core._asdict().items()
        if name not in _NOT_BUSY
    )
    return _Sample(time.monotonic(), busy, own.user + own.system, len(cores))
