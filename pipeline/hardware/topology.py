"""Compares what a launch asks for with what runs, since accelerate silently changes much of it.

Without a GPU, FSDP and DeepSpeed become plain data parallelism, or separate processes that each
believe to be the only one. Nothing is imported here that the caller has not imported.
"""

from __future__ import annotations

import os
from typing import Any

from pipeline.errors import InputError
from pipeline.recipe.shipped import FSDP2, REPLICATED, zero


def check_processes(state: Any, *, processes: int, use_cpu: bool, kind: str) -> None:
    """Refuse to run on other hardware than was asked for.

    Args:
        state: `accelerate.PartialState`.
        processes: how many were asked for.
        use_cpu: whether CPUs were.
        kind: how weights are to be distributed (`pipeline.recipe.shipped.Launch`).

    Raises:
        InputError: when something else runs.
    """
    if state.num_processes != processes:
        raise InputError(
            f"the launch config asks for {processes} processes but accelerate started "
            f"{state.num_processes}; choose another with --launch"
        )
    if not use_cpu and state.device.type == "cpu":
        raise InputError("the launch config asks for a GPU and there is none; use --launch cpu")
    if kind != REPLICATED and _name(state.distributed_type) in ("NO", "MULTI_CPU"):
        raise _mismatch(kind, REPLICATED)


def check_trainer(accelerator: Any, *, kind: str) -> None:
    """Refuse to train with weights distributed differently from what was asked for.

    Raises:
        InputError: when they are.
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
    """The kind of launch that the user started this process with.

    Raises:
        InputError: when it is one that changes results.
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
            raise InputError("a DeepSpeed file changes results; launch with --zero_stage instead")
        return zero(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))
    return REPLICATED


def check_started(state: Any) -> None:
    """Refuse processes, launched by the user, that each believe to be the only one.

    Raises:
        InputError: when they do, as on CPUs that nobody asked for.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != started:
        raise InputError(
            f"{started} processes were launched, but accelerate sees {state.num_processes}: there "
            "is no GPU; for processes on CPUs set ACCELERATE_USE_CPU=true"
        )


def asked_for_cpu() -> bool:
    """Whether the environment of a launched process asks for CPUs."""
    return _is_set("ACCELERATE_USE_CPU")


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes")


def _name(distributed_type: Any) -> str:
    return str(getattr(distributed_type, "value", distributed_type))


def _mismatch(kind: str, runs: str) -> InputError:
    return InputError(
        f"the launch asks for {kind}, but accelerate runs {runs}, as it does on CPUs; choose "
        "another with --launch"
    )
