"""An on-disk cache of judges' replies, so that nothing is asked twice."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from eval.judge.types import ORIGIN, Reply
from pipeline.errors import InputError
from pipeline.steps.artifact import canonical_json, disk_error


class ReplyCache:
    """Replies in a JSONL file, one per line, appended as they arrive.

    An incomplete line, such as after a kill, is ignored, and its question is asked again.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.replies: dict[str, Reply] = {}
        self._file: IO[bytes] | None = None
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None
        self._ends_in_line = data[-1:] in (b"", b"\n")
        for line in data.split(b"\n"):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_entry(entry):
                self.replies[entry["key"]] = entry["reply"]

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def open(self) -> None:
        """Open the file for appending, so that nothing is asked if replies cannot be stored.

        Raises:
            BashracError: if it is not writable.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            if not self._ends_in_line:
                self._file.write(b"\n")
        except OSError as error:
            raise disk_error(self.path, error) from error

    def add(self, key: str, reply: Reply) -> None:
        """Append a reply; it is in the file when this returns.

        Raises:
            BashracError: if the disk is full or not writable.
        """
        line = canonical_json({"key": key, "reply": reply}).encode() + b"\n"
        if self._file is None:
            self.open()
        try:
            if self._file is not None and self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise disk_error(self.path, error) from error
        self.replies[key] = reply


def _is_entry(entry: Any) -> bool:
    """Whether a line has a key and a well-formed reply."""
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
        return False
    reply = entry.get("reply")
    if not isinstance(reply, dict):
        return False
    usage = reply.get("usage", {})
    is_counted = isinstance(usage, dict) and all(type(count) is int for count in usage.values())
    changes = reply.get("request_changes", {})
    is_counted &= isinstance(changes, dict) and all(
        isinstance(reply.get(name, ""), str) for name in ORIGIN
    )
    kinds = [_REPLIES[name](value) for name, value in reply.items() if name in _REPLIES]
    return is_counted and len(kinds) == 1 and kinds[0]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_two_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _are_logprobs(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2
        and isinstance(pair[0], str) and (pair[1] is None or _is_number(pair[1]))
        for pair in value
    )  # fmt: skip


# Validators for the replies of `eval.judge.openai` and `eval.judge.local`, by field name.
_REPLIES: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "top_logprobs": _are_logprobs,
    "logprobs": _are_two_numbers,
    "rouge_l": _are_two_numbers,
}
