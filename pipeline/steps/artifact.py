"""Result directories: written atomically, completed by a record, verified before use.

A directory without `record.json` is never a result. Files are written to a temporary name, flushed
to disk and renamed, so that no partial file has a final name. The record is written last; it holds
the sha256 of every file and of itself, so that later changes are noticed before the files are used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict, cast

from pipeline.errors import BashracError, InputError
from pipeline.lazy import Lazy

if TYPE_CHECKING:
    from pipeline.steps.record import Record, Records

JsonObject = dict[str, Any]
# Errors caused by the disk or its permissions, not by the program.
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_LOW_DISK_MB = 64
RECORD = "record.json"
# Files that describe the run of a step rather than its result.
SPEC = "step.json"
ERROR = "error.json"
PROGRESS = "progress.json"
LOCK = "lock"
HOLDER = "holder.json"
_NOT_RESULTS = (RECORD, SPEC, ERROR, PROGRESS, LOCK, HOLDER)
# Large files, of which `verify` compares only the size by default: hashing is slow.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
SAMPLES = "samples.jsonl"  # a model's answers, stored before anything grades them
RESULT = "result.json"


class FileDigest(TypedDict):
    """A file of a result, as its record knows it."""

    sha256: str
    bytes: int


def canonical_json(value: Any) -> str:
    """Return JSON with one spelling per value; refuses NaN (ValueError) and objects (TypeError)."""
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


def written_files(directory: Path) -> dict[str, FileDigest]:
    """Return relative path -> {sha256, bytes} of every file of a result."""
    return {
        path.relative_to(directory).as_posix(): {
            "sha256": file_digest(path),
            "bytes": path.stat().st_size,
        }
        for path in _result_files(directory)
    }


def _result_files(directory: Path) -> list[Path]:
    relative = {path: path.relative_to(directory) for path in directory.rglob("*")}
    return sorted(
        path
        for path, name in relative.items()
        if name.as_posix() not in _NOT_RESULTS
        and not any(part.startswith(".") for part in name.parts)
        and path.is_file()
    )


def has_partial_results(directory: Path) -> bool:
    """Whether a stopped attempt has left rows or checkpoints to resume from."""
    return bool(_result_files(directory))


def empty(directory: Path) -> None:
    """Remove what a stopped attempt has left, so that the step starts over."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (SPEC, LOCK, HOLDER):
            path.unlink()


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files of killed writers; the caller holds the folder's lock."""
    for path in list(directory.rglob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[str]]:
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


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that is renamed to `path` only when the block ends without an error.

    Raises:
        OSError: when `path` exists.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def disk_error(path: Path, error: OSError) -> BashracError:
    """Return the error for a failed write (disk full, read-only, no permission)."""
    return BashracError(
        f"cannot write {path}: {error.strerror}; free space or choose another folder with "
        "--runs DIR, then run the same command again: finished steps are kept"
    )


def low_disk_hint(path: Path) -> str | None:
    """Return a hint when the disk is so full that this may be why something failed."""
    free = shutil.disk_usage(path).free >> 20
    if free >= _LOW_DISK_MB:
        return None
    return (
        f"the disk of {path} has {free} MB left, which is often the cause: free space, or choose "
        "another folder with --runs DIR; finished steps are kept"
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented."""
    with atomic_file(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: when the file is missing or incomplete; it names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); delete its folder, and the next run recreates it"
        ) from None


def read_object(path: Path) -> JsonObject:
    """Read a JSON object; {} if the file is missing, damaged or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON lines, atomically; returns their number."""
    count = 0
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            count += 1
    return count


def read_rows(path: Path) -> list[JsonObject]:
    """Read rows written by `write_rows`.

    Raises:
        InputError: when the file is missing or a line is damaged; it names file and line.
    """
    return list(_rows_of(path))


class StoredRows(Lazy[JsonObject]):
    """Rows written by `write_rows`, each read from the file when it is accessed.

    Raises:
        InputError: as `read_rows`; a damaged line is reported when it is accessed.
    """

    def __init__(self, path: Path):
        self.path, self._starts = path, array("q", [0])
        try:
            with path.open("rb") as file:
                for line in file:
                    self._starts.append(self._starts[-1] + len(line))
        except OSError as error:
            raise _unreadable(path, error) from None

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[JsonObject]:
        return _rows_of(self.path)

    def item(self, number: int) -> JsonObject:
        """Read a row."""
        return _row(self.path, number, self.line(number))

    def line(self, number: int) -> bytes:
        """The bytes of a row, with its line end."""
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            return file.read(self._starts[number + 1] - self._starts[number])


def _rows_of(path: Path) -> Iterator[JsonObject]:
    # Binary files split at \n only. Answers may contain U+2028 and the like, which JSON does not
    # escape.
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                yield _row(path, number, line)
    except OSError as error:
        raise _unreadable(path, error) from None


def _row(path: Path, number: int, line: bytes) -> JsonObject:
    try:
        return json.loads(line)
    except ValueError:
        raise InputError(
            f"{path}:{number + 1} is damaged; delete {path.parent}, and the next run recreates it"
        ) from None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read: {error}")


def is_finished(directory: Path) -> bool:
    """Whether a step's directory holds a complete result."""
    return (directory / RECORD).is_file()


def write_record(directory: Path, record: Record) -> None:
    """Write a step's record, which marks it as finished, with a digest of the record itself."""
    plain = json.loads(json.dumps({key: record[key] for key in record if key != "digest"}))
    write_json(directory / RECORD, {**plain, "digest": fingerprint(plain)})


def remove_weights(directory: Path) -> None:
    """Remove the weights of a finished step; its record keeps the rest, and says so."""
    record = read_record(directory)
    names = [name for name in record["files"] if Path(name).suffix in _WEIGHTS]
    if names:  # the record first: a kill in between leaves files, which the next call removes
        files = {name: known for name, known in record["files"].items() if name not in names}
        write_record(directory, {**record, "files": files, "removed": names})
    for name in [*names, *record.get("removed", [])]:
        (directory / name).unlink(missing_ok=True)


def lacks_weights(directory: Path) -> bool:
    """Whether a step is finished and its weights have been removed."""
    return bool(read_object(directory / RECORD).get("removed"))


def reopen(directory: Path) -> None:
    """Make a finished step unfinished, so that it is run again from the start."""
    (directory / RECORD).unlink(missing_ok=True)
    empty(directory)


def read_record(directory: Path) -> Record:
    """Read the record of a finished step.

    Raises:
        InputError: when the step is not finished, or its record was edited.
    """
    record = read_json(directory / RECORD)
    plain = dict(record) if isinstance(record, dict) else {}
    if plain.pop("digest", None) != fingerprint(plain):
        raise _changed(directory, directory / RECORD, "has been changed since it was written")
    return cast("Record", record)


def verify(directory: Path, *, weights: bool = False) -> None:
    """Check that a finished step's directory holds exactly the files it wrote.

    Args:
        directory: of the step.
        weights: whether to hash weights too; by default only their size is compared.

    Raises:
        InputError: names a file that was changed, is missing or was added.
    """
    known = read_record(directory)["files"]
    verify_files(directory, known, weights=weights)
    for path in _result_files(directory):
        if path.relative_to(directory).as_posix() not in known:
            raise InputError(f"{path} was not written by this step; move it elsewhere")


def finished_records(runs: Path) -> Records:
    """The records of all finished steps by fingerprint, without damaged records."""
    records: Records = {}
    for file in runs.glob("steps/*/record.json"):
        try:
            record = read_record(file.parent)
        except InputError:
            continue  # `bashrac run` reports it, if a plan needs the step
        records[record["fingerprint"]] = record
    return records


def verify_files(directory: Path, known: dict[str, FileDigest], *, weights: bool = False) -> None:
    """Check some files of a finished step against their digests, as `verify` does."""
    for name, expected in known.items():
        path = directory / name
        if not path.is_file():
            raise _changed(directory, path, "is missing")
        if path.stat().st_size != expected["bytes"]:
            size = f"has {path.stat().st_size} bytes instead of {expected['bytes']}"
            raise _changed(directory, path, size)
        is_read = weights or path.suffix not in _WEIGHTS
        if is_read and file_digest(path) != expected["sha256"]:
            raise _changed(directory, path, "has been changed since it was written")


def _changed(directory: Path, path: Path, what: str) -> InputError:
    return InputError(
        f"{path} {what}, so this result is not used; restore the file, or delete {directory}, and "
        "the next run recreates it"
    )
