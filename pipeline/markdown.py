"""Texts of recipes, data and models inside Markdown, where they must read as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.errors import visible

_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~$&!]")


def inline(text: str) -> str:
    """A text in one line that formats nothing."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(visible(text).split()))


def code(text: str) -> str:
    """A text in one line, as code; also inside a table, where a bar would end the cell.

    A text of nothing but space is nothing, since Markdown has no empty code.
    """
    line = " ".join(visible(text).split()).replace("|", "\\|")
    fence = "`" * (_longest_run(line) + 1)
    space = " " if line[:1] == "`" or line[-1:] == "`" else ""
    return f"{fence}{space}{line}{space}{fence}" if line else ""


def block(text: str, language: str) -> str:
    """A text of several lines, as code, whatever fences it holds."""
    fence = "`" * max(_longest_run(text) + 1, 3)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
