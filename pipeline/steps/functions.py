"""Which function makes a step: its name in the identity, its module, and its version.

A name is part of every published fingerprint, so it never changes, even if the function moves to
another file. A version is raised when what a step means or writes changes; versions above 1 are
part of the identity, so that old rows are not mistaken for new rows.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from pipeline.errors import InputError


class Function(NamedTuple):
    """A step's function as 'module:function', and the version of what it makes."""

    place: str
    version: int = 1


# For any other name, such as that of a user's own method, the name is the place.
_FUNCTIONS = {
    "eval.alpaca:grade_answers": Function("eval.benchmarks.alpaca:grade_answers"),
    "eval.contamination:check_overlap": Function("eval.benchmarks.overlap:check_overlap"),
    "eval.gap_grades:grade": Function("eval.benchmarks.gap:grade"),
    "eval.gap_steps:write_contexts": Function("eval.benchmarks.gap:write_contexts", version=2),
    "eval.gap_steps:write_losses": Function("eval.benchmarks.gap:write_losses", version=2),
    "eval.gsm8k:grade_answers": Function("eval.benchmarks.gsm8k:grade_answers"),
    "eval.rouge:grade_answers": Function("eval.benchmarks.rouge:grade_answers"),
    "eval.tldr:grade_answers": Function("eval.benchmarks.tldr:grade_answers"),
    "pipeline.answers:write_answers": Function("pipeline.rows.answers:write_answers", 2),
    "pipeline.model:merge": Function("pipeline.models.load:merge"),
    "pipeline.stages.bash:write_contexts": Function("pipeline.stages.bash:write_contexts", 2),
    "pipeline.stages.dpo:train": Function("pipeline.stages.dpo:train"),
    "pipeline.stages.dpo:write_pairs": Function("pipeline.stages.dpo:write_pairs", version=2),
    "pipeline.stages.rac:write_corrections": Function(
        "pipeline.stages.rac:write_corrections", version=2
    ),
    "pipeline.stages.sft:train": Function("pipeline.stages.sft:train"),
    "pipeline.stages.spin:write_pairs": Function("pipeline.stages.spin:write_pairs"),
}


def version_of(name: str) -> int:
    """The version of what a step's function makes, from 1."""
    return _FUNCTIONS.get(name, Function(name)).version


def function_of(name: str) -> Callable[[Any], None]:
    """Import the function that makes a step, given its name in the step's identity.

    Raises:
        InputError: for a name outside bashrac, which a step.json might hold.
    """
    module, _, function = _FUNCTIONS.get(name, Function(name)).place.partition(":")
    if module.split(".")[0] not in ("pipeline", "eval"):
        raise InputError(f"{name} is code outside bashrac, which steps never run")
    return getattr(import_module(module), function)
