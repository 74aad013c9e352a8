"""Reads the words and templates of the built-in data sets, YAML files in this folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

try:
    from yaml import CSafeLoader as SafeLoader  # libyaml, several times faster
except ImportError:
    from yaml import SafeLoader


@cache
def read(name: str) -> dict[str, Any]:
    """The contents of NAME.yaml, with the lists of words.yaml."""
    text = Path(__file__).with_name(f"{name}.yaml").read_text("utf-8")
    return {**(read("words") if name != "words" else {}), **SafeLoader(text).get_single_data()}


def choices(written: Any, texts: dict[str, Any]) -> Sequence[Any]:
    """The values of a slot, written as a list, the name of one, or a range: "2 to 60 by 2"."""
    if isinstance(written, str) and written in texts:
        written = texts[written]
    if isinstance(written, dict):
        return list(written.items())
    if isinstance(written, list):
        return written
    (numbers,) = re.findall(r"^(\d+) to (\d+)(?: by (\d+))?$", written)
    first, last, step = (int(number or 1) for number in numbers)
    return range(first, last + 1, step)


def draw_slot(random: Random, written: Any, texts: dict[str, Any]) -> Any:
    """One of the choices, or a list of several for "3 of names"."""
    if isinstance(written, str) and " of " in written:
        count, _, several = written.partition(" of ")
        return random.sample(choices(several, texts), int(count))
    return random.choice(choices(written, texts))
