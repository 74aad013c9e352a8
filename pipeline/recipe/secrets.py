"""Keys come from the environment only: a recipe that holds one is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pipeline.errors import Problem

_ENDINGS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_SHORTEST = 12  # below it a value may be a word that texts hold anyway


def key_problems(node: Any, key: str = "") -> Iterator[Problem]:
    """The places of a recipe whose text holds the value of a key in the environment."""
    if isinstance(node, (dict, list)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for name, value in items:
            yield from key_problems(value, f"{key}.{name}".strip("."))
    elif isinstance(node, str):
        for variable in _variables_in(node):
            yield Problem(
                key,
                f"holds the value of ${variable}, and what a recipe says is recorded; take it out: "
                "keys are read from the environment",
            )


def _variables_in(text: str) -> list[str]:
    return sorted(
        name
        for name, value in os.environ.items()
        if name.upper().endswith(_ENDINGS)
        and len(value.strip()) >= _SHORTEST
        and value.strip() in text
    )
