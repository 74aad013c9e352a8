"""Completes what TRL and peft do to an adapter before training.

Decisions: (1) every trained weight is float32: over a 16-bit base peft leaves other modules
(`modules_to_save`), token rows and biases in the base's dtype, and over a 4-bit base TRL rounds the
adapter itself to bfloat16, where an update of 1e-5 of a weight is lost; (2) DPO's frozen copy of an
adapter is complete: TRL copies weights by a name pattern that misses LoRA of embeddings and
`trainable_token_indices`; (3) no trained weight is shared with the reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.errors import StepFailedError

if TYPE_CHECKING:
    from pipeline.steps.context import StepContext
    from pipeline.steps.options import TrainOptions

_POLICY, _REFERENCE = "default", "ref"  # the names peft and TRL give the adapters


def train_in_float32(step: StepContext[TrainOptions], model: Any) -> None:
    """Cast every trained weight to float32, with the values it was saved with (decision 1)."""
    import torch

    trained = [weight for weight in model.parameters() if weight.requires_grad]
    rounded = [weight for weight in trained if weight.dtype != torch.float32]
    # DeepSpeed requires one dtype for all weights, and updates a float32 copy itself.
    if not (rounded or step.options.get("quantize")) or step.launch.kind.startswith("ZeRO"):
        return
    for weight in rounded:
        weight.data = weight.data.float()
    if "adapter" in step.locations:
        from peft import set_peft_model_state_dict
        from peft.utils.save_and_load import load_peft_weights

        from pipeline.models.locate import locate

        # A cast alone would keep the rounding: read the saved values again.
        saved = load_peft_weights(locate(step.locations["adapter"]), device="cpu")
        set_peft_model_state_dict(model, saved, adapter_name=_POLICY)


def complete_reference(model: Any) -> None:
    """Make DPO's frozen copy of an adapter equal to it (decision 2).

    Raises:
        StepFailedError: when training would change the reference too (decision 3).
    """
    if not hasattr(model, "peft_config"):
        return
    # With duplicates, since a tied weight is copied under each of its names.
    weights = dict(model.named_parameters(remove_duplicate=False))
    parts = {name: name.split(".") for name in weights}
    # A trained weight outside the policy's adapter belongs to the base, which both adapters share.
    shared = [
        name for name in weights if weights[name].requires_grad and _POLICY not in parts[name]
    ]
    if shared:
        raise StepFailedError(
            f"{len(shared)} weights of the base are trained, first {shared[0]}, which would change "
            "DPO's reference too; change the lora options that train them"
        )
    if _REFERENCE in model.peft_config:
        for name, weight in weights.items():
            if _POLICY in parts[name]:
                copy = [_REFERENCE if part == _POLICY else part for part in parts[name]]
                weights[".".join(copy)].data = weight.data.clone()
