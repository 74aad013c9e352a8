"""One writer a step: the lock on its folder, and who holds it.

The operating system gives a lock back when its holder dies, however it dies; where a file system
knows no such locks, filelock keeps the holder's process and host in the file, and takes over from
one that is gone.
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

# A holder that has just been killed takes a moment to end, and one who looks holds it for as long.
_PATIENCE_SECONDS = 3


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a step's folder, so that nobody else writes there.

    Raises:
        StepHeldError: when another process holds it; it is named.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(directory / LOCK, timeout=_PATIENCE_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise StepHeldError(
            f"{directory} is being worked on by {_holder(directory)}; wait for it or stop it, then "
            "run the same command again"
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
    """Return who works on a step, in words, or None when nobody does."""
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
        since = datetime.fromisoformat(found["since"]).astimezone()  # here, wherever it runs
        is_today = since.date() == datetime.now(since.tzinfo).date()
        shown = since.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M")
        return f"process {found['process']} on {found['host']}, since {shown}"
    except (InputError, KeyError, TypeError, ValueError):
        return "another process"
