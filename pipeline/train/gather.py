"""Gathers the weights of a model that was trained sharded over several processes.

How transformers saves depends on the launch config: it may write shards, or weights rounded to
bfloat16. Here the result is what a single process would have saved, under every launch.
"""

from __future__ import annotations

from typing import Any

from pipeline.hardware.topology import running_kind
from pipeline.recipe.shipped import FSDP2, REPLICATED


def whole_weights(trainer: Any) -> dict[str, Any] | None:
    """Gather the weights to save; every process must call this.

    Returns:
        Name -> full tensor, on the CPU, in the main process: an adapter's trained weights, or all
        weights of a model without adapter. Empty in other processes. None if nothing is sharded.
    """
    from peft import PeftModel

    kind = running_kind(trainer.accelerator)
    if kind == REPLICATED:
        return None
    gather = _of_fsdp if kind == FSDP2 else _of_deepspeed
    is_main = trainer.accelerator.is_main_process
    is_adapter = isinstance(trainer.model, PeftModel)
    found: dict[str, Any] = {}
    names: dict[int, str] = {}  # id -> first name: tied weights are gathered once, and stay tied
    for name, weight in trainer.model.state_dict(keep_vars=True).items():
        if is_adapter and not weight.requires_grad:
            continue
        first = names.setdefault(id(weight), name)
        if first == name:
            whole = gather(weight, trainer.accelerator.device)
        if is_main:
            # To the CPU one by one: a GPU may not have room for all of them.
            found[name] = whole.detach().cpu() if first == name else found[first]
    return found


def _of_fsdp(weight: Any, device: Any) -> Any:
    from torch.distributed.tensor import DTensor

    # Shards that are offloaded to the CPU are gathered between GPUs too.
    if not isinstance(weight, DTensor):
        return weight
    on_device: Any = weight.detach().to(device)
    return on_device.full_tensor()


def _of_deepspeed(weight: Any, device: Any) -> Any:
    """The float32 weights that DeepSpeed updates, if it computes with a 16-bit copy of them."""
    import deepspeed  # pyright: ignore[reportMissingImports]
    import torch
    from deepspeed.utils import safe_get_full_fp32_param  # pyright: ignore[reportMissingImports]

    del device
    if isinstance(weight, torch.nn.Parameter) and weight.requires_grad:
        updated = safe_get_full_fp32_param(weight)
        if updated is not None:
            return updated
    if not hasattr(weight, "ds_id"):
        return weight
    with deepspeed.zero.GatheredParameters([weight]):
        return weight.detach().clone()
