"""Directories that hold results: how they are named, written, completed and trusted.

A directory without `record.json` is never a result. Files appear under their name only when whole:
written beside it, flushed to disk, renamed. The record is written last.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.errors import BashracError, InputError

# Errors of the place written to, not of the program.
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
RECORD = "record.json"
SAMPLES = "samples.jsonl"  # a model's answers, stored before anything grades them
RESULT = "result.json"


def canonical_json(value: Any) -> str:
    """Return JSON with one spelling per value; NaN, sets and objects are refused (TypeError)."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def fingerprint(identity: Any) -> str:
    """Return the sha256 of an identity's canonical JSON, as 64 hex digits."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tree_digests(directory: Path, *, ignore: Iterable[str] = ()) -> dict[str, str]:
    """Return relative path -> sha256 of every file below a directory, sorted by path."""
    ignored = set(ignore)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    relative = {path.relative_to(directory).as_posix(): path for path in files}
    return {name: file_digest(path) for name, path in relative.items() if name not in ignored}


@contextmanager
def whole_file(path: Path) -> Iterator[IO[str]]:
    """Open a text file that appears at `path` only when the block ends without an error.

    Raises:
        BashracError: when the disk is full or not writable; earlier files stay as they were.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def disk_error(path: Path, error: OSError) -> BashracError:
    """Return the sentence for a write that failed (disk full, read-only, no permission)."""
    return BashracError(
        f"cannot write {path}: {error.strerror}; free space or choose another folder with "
        "--runs DIR, then run the same command again: finished steps are kept"
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole, indented for people."""
    with whole_file(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: when it is not there or not whole; it names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); delete the folder it is in to have it made again"
        ) from None


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as JSON lines, whole; returns how many."""
    count = 0
    with whole_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read rows written by `write_rows`.

    Raises:
        InputError: when the file is missing or a line is damaged; it names file and line.
    """
    rows = []
    try:
        # Not splitlines: answers may hold U+2028 and the like, which JSON leaves as they are.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines if lines != [""] else [], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise InputError(
                f"{path}:{number} is damaged; delete {path.parent} to have it made again"
            ) from None
    return rows


def is_finished(directory: Path) -> bool:
    """Whether a step's directory holds a complete result."""
    return (directory / RECORD).is_file()


def read_record(directory: Path) -> dict[str, Any]:
    """Read the record of a finished step.

    Raises:
        InputError: when the step is not finished or the record is damaged.
    """
    return read_json(directory / RECORD)
