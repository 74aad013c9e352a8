"""One writer per step: the lock on its folder, and who holds it.

The operating system releases a lock when its holder dies, however it dies. On a file system without
such locks, filelock stores the holder's process and host in the file, and takes over the lock of a
process that no longer exists.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import InputError, StepHeldError
from pipeline.steps import artifact
from pipeline.steps.artifact import HOLDER, LOCK

# A holder that was just killed takes a moment to exit, and `held_by` itself holds a lock briefly.
_PATIENCE_SECONDS = 3


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the lock on a step's folder, so that no other process writes there.

    Raises:
        StepHeldError: when another process holds it; the message names that process.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(directory / LOCK, timeout=_PATIENCE_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise StepHeldError(
            f"{directory} is in use by {_holder(directory)}; wait for it or stop it, then run the "
            "same command again"
        ) from None
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        us = {"process": os.getpid(), "host": platform.node(), "since": now}
        artifact.write_json(directory / HOLDER, us)
        yield
    finally:
        (directory / HOLDER).unlink(missing_ok=True)
        lock.release()


def held_by(directory: Path) -> str | None:
    """Describe the process that holds a step's lock; None if there is none."""
    from filelock import FileLock, Timeout

    if not (directory / LOCK).exists():
        return None
    try:
        with FileLock(directory / LOCK, timeout=0):
            return None
    except Timeout:
        return _holder(directory)


def _holder(directory: Path) -> str:
    try:
        found = artifact.read_json(directory / HOLDER)
        since = datetime.fromisoformat(found["since"]).astimezone()  # to this machine's time zone
        is_today = since.date() == datetime.now(since.tzinfo).date()
        shown = since.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M")
        return f"process {found['process']} on {found['host']}, since {shown}"
    except (InputError, KeyError, TypeError, ValueError):
        return "another process"
