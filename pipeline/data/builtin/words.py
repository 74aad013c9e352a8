"""Reading the words and texts of the built-in data sets, which lie beside this file as YAML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first reads ten times as fast


def read(name: str) -> dict[str, Any]:
    """The texts of one file."""
    path = Path(__file__).with_name(f"{name}.yaml")
    return yaml.load(path.read_text("utf-8"), _LOADER)


_SHARED = read("words")
NAMES: list[str] = _SHARED["names"]
DAYS: list[str] = _SHARED["days"]


def choices(written: str | list[str]) -> Sequence[Any]:
    """What a slot may hold: a list, one of words.yaml by its name, or "2 to 60", "2 to 60 by 2"."""
    if isinstance(written, list) or written in _SHARED:
        return written if isinstance(written, list) else _SHARED[written]
    first, last, step = re.fullmatch(r"(\d+) to (\d+)(?: by (\d+))?", written).groups("1")
    return range(int(first), int(last) + 1, int(step))
