"""The training methods: where each lies, and the TRL options class that it trains with.

As text, since the layers below must know them by name: nothing is imported before it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple


class Method(NamedTuple):
    """A module in `pipeline/stages/`, and its trainer's options class, if it trains anything."""

    module: str
    trainer: str | None


METHODS = {
    "base": Method("pipeline.stages.base", None),
    "sft": Method("pipeline.stages.sft", "trl.SFTConfig"),
    "bash": Method("pipeline.stages.bash", "trl.SFTConfig"),
    "rac": Method("pipeline.stages.rac", "trl.SFTConfig"),
    "rft": Method("pipeline.stages.rft", "trl.SFTConfig"),
    "spin": Method("pipeline.stages.spin", "trl.DPOConfig"),
    "dpo": Method("pipeline.stages.dpo", "trl.DPOConfig"),
}


def method_module(method: str) -> Any:
    """The module that implements a method."""
    return import_module(METHODS[method].module)


def trainer_of(method: str) -> str | None:
    """The TRL options class a method trains with, None where it trains nothing."""
    return METHODS[method].trainer
