"""A 4-bit base under an adapter (QLoRA, Dettmers et al. 2023), through bitsandbytes.

Decisions: (1) nf4 with double quantisation, made from the float32 weights in every precision, so
that every step reads the same 4 bits; what stays in 16 or 32 bits (embeddings, norms, output layer)
and all arithmetic are in the step's precision; (2) the same kernel everywhere: on some CPUs
bitsandbytes would use a special kernel, whose scales and activations are bfloat16 even when float32
is requested, and which packs the weights in place so that gradients no longer pass through them;
(3) the adapter stays in float32 (see pipeline/train/adapters.py), where TRL would round it to
bfloat16; (4) an adapter is merged into the dequantised weights, since it was trained on those, and
never in the middle of a recipe: quantised again, the sum would lose much of what was learned.
"""

from __future__ import annotations

from typing import Any

from pipeline.errors import InputError, Problem
from pipeline.recipe.registry import trainer_of
from pipeline.recipe.schema import Recipe
from pipeline.recipe.shipped import REPLICATED


def quantize_problems(recipe: Recipe) -> list[Problem]:
    """What is not possible in a recipe with `quantize:`."""
    if recipe.quantize is None:
        return []
    problems = []
    training = {name: stage for name, stage in recipe.stages.items() if trainer_of(stage.method)}
    whole = [name for name, stage in training.items() if recipe.lora_for(stage) is None]
    if whole:
        message = f"4-bit weights cannot be trained, as {', '.join(whole)} would; add lora:"
        problems.append(Problem("quantize", message))
    for name, stage in training.items():
        if stage.merge_adapter:
            message = (
                "the sum of base and adapter would be rounded to 4 bits again, and lose much of "
                "what was trained; continue with the same adapter (leave merge_adapter out), or "
                "run `bashrac merge` on the previous stage and start a new recipe from its output"
            )
            problems.append(Problem(f"stages.{name}.merge_adapter", message))
    if recipe.generation.engine == "vllm":
        message = (
            "vllm would use different weights from the 4-bit ones used in training; use auto, or "
            "leave quantize out"
        )
        problems.append(Problem("generation.engine", message))
    if recipe.generation.merge_for_reading:
        message = (
            "the sum of base and adapter would be rounded to 4 bits again; leave "
            "merge_for_reading or quantize out"
        )
        problems.append(Problem("generation.merge_for_reading", message))
    return problems


def loading_options(dtype: str, device: Any) -> dict[str, Any]:
    """Options of `from_pretrained` that quantise linear layers to 4 bits while they are loaded."""
    import torch
    from transformers import BitsAndBytesConfig

    return {
        "dtype": torch.float32,  # decision 1
        "device_map": {"": device},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        ),
    }


def finish_loading(model: Any, dtype: str) -> Any:
    """Cast everything that is not in 4 bits to `dtype`, and use the same kernel on every CPU."""
    import torch
    from bitsandbytes.nn import Linear4bit

    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False  # decision 2
    return model


def check_whole(kind: str) -> None:
    """Refuse launches that shard weights.

    Args:
        kind: of the launch (`pipeline.recipe.shipped.Launch.kind`).

    Raises:
        InputError: under FSDP and DeepSpeed.
    """
    if kind != REPLICATED:
        raise InputError(
            f"quantize: 4-bit weights cannot be sharded, as {kind} would; use --launch single_gpu "
            "or ddp"
        )
