"""Compares what a launch requests with what runs, since accelerate silently falls back.

Without a GPU, FSDP and DeepSpeed become plain data parallelism, or independent processes that do
not know of each other. This module imports nothing that its caller has not imported.
"""

from __future__ import annotations

import os
from typing import Any

from pipeline.errors import InputError
from pipeline.recipe.shipped import FSDP2, REPLICATED, zero


def check_processes(state: Any, *, processes: int, use_cpu: bool, kind: str) -> None:
    """Refuse to run with other processes or hardware than requested.

    Args:
        state: `accelerate.PartialState`.
        processes: the requested number of processes.
        use_cpu: whether CPUs are requested.
        kind: the requested distribution of weights (`pipeline.recipe.shipped.Launch`).

    Raises:
        InputError: if they differ.
    """
    if state.num_processes != processes:
        raise InputError(
            f"the launch config requests {processes} processes, but accelerate started "
            f"{state.num_processes}; choose another with --launch"
        )
    if not use_cpu and state.device.type == "cpu":
        raise InputError("the launch config requests a GPU, but there is none; use --launch cpu")
    if kind != REPLICATED and _name(state.distributed_type) in ("NO", "MULTI_CPU"):
        raise _mismatch(kind, REPLICATED)


def check_trainer(accelerator: Any, *, kind: str) -> None:
    """Refuse to train if weights are not distributed as requested.

    Raises:
        InputError: if they are not.
    """
    if (runs := running_kind(accelerator)) != kind:
        raise _mismatch(kind, runs)


def running_kind(accelerator: Any) -> str:
    """How weights are distributed over the processes of an `accelerate.Accelerator`."""
    name = _name(accelerator.distributed_type)
    if name == "FSDP":
        return f"FSDP{accelerator.state.fsdp_plugin.fsdp_version}"
    if name == "DEEPSPEED":
        return zero(accelerator.state.deepspeed_plugin.zero_stage)
    return REPLICATED


def asked_by_environment() -> str:
    """The kind of launch with which the user started this process.

    Raises:
        InputError: if it would change results, or is not supported.
    """
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        raise InputError(
            "mixed precision changes results, so it belongs in the recipe: launch with "
            "--mixed_precision no and write precision: bfloat16 (or leave auto)"
        )
    if _is_set("ACCELERATE_USE_FSDP"):
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise InputError(
                f"FSDP version {version} is not supported; launch with --fsdp_version 2"
            )
        return FSDP2
    if _is_set("ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none") != "none":
            raise InputError(
                "a DeepSpeed config file changes results; launch with --zero_stage instead"
            )
        return zero(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    return REPLICATED


def check_started(state: Any) -> None:
    """Refuse processes, launched by the user, that do not know of each other.

    Raises:
        InputError: if they do not, as on CPUs that were not requested.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise InputError(
            f"{started} processes were launched, but accelerate sees {state.num_processes}: there "
            "is no GPU; for processes on CPUs set ACCELERATE_USE_CPU=true"
        )


def asked_for_cpu() -> bool:
    """Whether the environment of a launched process requests CPUs."""
    return _is_set("ACCELERATE_USE_CPU")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes")


def _name(distributed_type: Any) -> str:
    return str(getattr(distributed_type, "value", distributed_type))


def _mismatch(kind: str, runs: str) -> InputError:
    return InputError(
        f"the launch requests {kind}, but accelerate runs {runs}, as it does on CPUs; choose "
        "another with --launch"
    )
