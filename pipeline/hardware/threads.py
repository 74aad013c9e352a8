"""How many threads a step computes with on a CPU that it may have to share.

The threads of one operation wait for each other at its end. Where another program holds the core
of one, all wait for it, thousands of times a second: beside busy programs, two threads on two cores
are slower than one (`benchmarks/busy.py` prints by how much). So a launch takes the cores that it
may use (affinity, a container's quota), and a running step those that others leave, looking every
few seconds. Where the user sets OMP_NUM_THREADS nothing is adapted.

The number of threads decides in which order a CPU adds, so the last bits of numbers follow it; a
step's record names every number of threads that its last attempt used.
"""

from __future__ import annotations

import math
import os
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Set in launched processes whose OMP_NUM_THREADS is our choice and not the user's.
ADAPT = "BASHRAC_ADAPT_THREADS"
_SECONDS = 5.0  # between two looks
_NOT_BUSY = ("idle", "iowait", "guest", "guest_nice", "steal")  # guests are counted as user's too


def usable_cores() -> int:
    """How many cores this process may use: affinity, and the quota of a container, rounded up."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = container_quota()
    return cores if quota is None else min(max(math.ceil(quota), 1), cores)


def container_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The cores that a container may use in the mean, None for all; of cgroups of both versions."""
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


def threads_beside(others: float, *, cores: int, most: int) -> int:
    """The threads to compute with; a core of which others use half is left to them.

    Args:
        others: how many cores other programs used, in the mean.
        cores: that there are.
        most: threads that may be used.
    """
    return min(max(math.ceil(cores - others - 0.5), 1), most)


class _Look(NamedTuple):
    """Seconds: of the clock, that our cores were busy, of which with this process."""

    now: float
    busy: float
    own: float
    cores: int


class Threads:
    """The threads of a process, adapted to what other programs use of its cores."""

    def __init__(self, most: int):
        self.most = self.count = most
        self.used = {most}
        self._last, self._looked = _look(), time.monotonic()

    def adapt(self) -> None:
        """Take more or fewer threads where others leave more or fewer cores than before."""
        if time.monotonic() - self._looked < _SECONDS:
            return
        before, now = self._last, _look()
        self._last, self._looked = now, time.monotonic()
        if before is None or now is None:
            return
        others = ((now.busy - before.busy) - (now.own - before.own)) / (now.now - before.now)
        count = threads_beside(others, cores=now.cores, most=self.most)
        if count != self.count:
            import torch

            torch.set_num_threads(count)
            self.count = count
            self.used.add(count)


@cache
def threads_of_launch() -> Threads | None:
    """Those of this process; None where their number is not to be adapted."""
    return Threads(int(os.environ["OMP_NUM_THREADS"])) if ADAPT in os.environ else None


def _look() -> _Look | None:
    """What there is to see, None where the system does not tell."""
    import psutil

    try:
        process, cores = psutil.Process(), psutil.cpu_times(percpu=True)
        if hasattr(process, "cpu_affinity"):  # not on macOS
            mine = process.cpu_affinity()
            if max(mine) >= len(cores):  # a container that numbers its cores otherwise
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
    return _Look(time.monotonic(), busy, own.user + own.system, len(cores))
