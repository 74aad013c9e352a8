"""How much memory weights, gradients and optimizer states take, in bytes, and how it is sharded.

What a pass takes (activations, logits, cache) is traced (pipeline/estimate/trace.py).

Sources: Rajbhandari et al. 2020, "ZeRO" (arXiv 1910.02054), figure 1, for what each stage shards;
Dettmers et al. 2022 (arXiv 2110.02861) for 8-bit states, and Dettmers et al. 2023, "QLoRA"
(arXiv 2305.14314), for 4-bit weights; the sources of torch, transformers, TRL and bitsandbytes for
what is kept in which dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING

from pipeline.recipe.shipped import FSDP2, zero

if TYPE_CHECKING:
    from torch import Tensor

# Each block of so many 8-bit numbers has a float32 scale; smaller tensors keep 32-bit states.
_BLOCK_8BIT, _SMALLEST_8BIT = 256, 4096
# Each block of 64 4-bit weights has an 8-bit scale, and 256 of those share a float32.
_BLOCK_4BIT, _SCALES_4BIT = 64, 256
# DeepSpeed's defaults, in weights: what ZeRO-3 keeps gathered at once, what is reduced at once.
_ZERO3_LIVE, _ZERO_BUCKET = 10**9, 5 * 10**8

# Optimizer -> numbers it keeps for each trained weight, and their bytes (None: the weight's own).
_STATES: dict[str, tuple[int, int | None]] = {
    "adamw_torch": (2, None),
    "adamw_torch_fused": (2, None),
    "adamw_bnb_8bit": (2, 1),
    "adamw_8bit": (2, 1),
    "paged_adamw_8bit": (2, 1),
    "paged_adamw_32bit": (2, 4),
    "ademamix": (3, 4),
    "ademamix_8bit": (3, 1),
    "paged_ademamix_32bit": (3, 4),
    "paged_ademamix_8bit": (3, 1),
    "lion_32bit": (1, 4),
    "lion_8bit": (1, 1),
    "paged_lion_32bit": (1, 4),
    "paged_lion_8bit": (1, 1),
    "rmsprop_bnb": (1, 4),
    "rmsprop_bnb_32bit": (1, 4),
    "rmsprop_bnb_8bit": (1, 1),
    "rmsprop": (1, None),
    "adagrad": (1, None),
    "sgd": (0, None),
    "adafactor": (0, None),  # a number for each row and column: `_adafactor_bytes`
}
# A step of these keeps a temporary copy of the weights: on a GPU torch updates all in one go.
_COPIES_WEIGHTS = ("adamw_torch", "rmsprop", "adagrad")
DEFAULT_OPTIMIZER = "adamw_torch_fused"  # of transformers (a test compares)


def is_known_optimizer(name: str) -> bool:
    """Whether the states of an optimizer are known; others are taken to be AdamW's."""
    return name in _STATES


def optimizer_bytes(weights: Sequence[Tensor], name: str, embedding: Tensor | None = None) -> int:
    """Bytes of an optimizer's states, after its first step.

    Args:
        weights: the trained tensors.
        name: `trainer.optim`.
        embedding: the one for which bitsandbytes' 8-bit optimizers keep 32-bit states.
    """
    if name == "adafactor":
        return sum(map(_adafactor_bytes, weights))
    states, state_bytes = _STATES.get(name, _STATES[DEFAULT_OPTIMIZER])
    if state_bytes is None:
        return states * sum(one.nbytes for one in weights)
    if state_bytes == 4:
        return states * sum(4 * one.numel() for one in weights)
    return states * sum(_state_bytes_8bit(one, one is embedding) for one in weights)


def _adafactor_bytes(weight: Tensor) -> int:
    if weight.dim() < 2:
        return 4 * weight.numel()
    return 4 * (weight.numel() // weight.shape[-1] + weight.numel() // weight.shape[-2])


def _state_bytes_8bit(weight: Tensor, embeds: bool) -> int:
    if embeds or weight.numel() < _SMALLEST_8BIT:
        return 4 * weight.numel()
    return weight.numel() + 4 * -(-weight.numel() // _BLOCK_8BIT)


def optimizer_step_bytes(weights: Sequence[Tensor], name: str, *, on_gpu: bool) -> int:
    """Bytes that a step of the optimizer needs while it runs.

    Off a GPU torch updates one weight at a time. So does adafactor anywhere, which keeps the
    squared gradient, the update, and a copy of both.
    """
    sizes = [weight.nbytes for weight in weights]
    if name == "adafactor":
        return 3 * max(sizes)
    if name not in _COPIES_WEIGHTS:
        return 0
    return sum(sizes) if on_gpu else max(sizes)


def four_bit_bytes(count: int) -> int:
    """Bytes of `count` weights of linear layers in nf4, with their doubly quantised scales."""
    scales = -(-count // _BLOCK_4BIT)
    return -(-count // 2) + scales + 4 * -(-scales // _SCALES_4BIT)


@dataclass(frozen=True)
class Memory:
    """The peak memory of one process, in bytes.

    Attributes:
        weights: of the model, as stored (an adapter and 4-bit scales included).
        gradients: of what is trained.
        optimizer: its states.
        reference: weights of a reference model, or of a frozen copy of the adapter.
        cache: keys and values of rows being written.
        passes: the rest: activations, logits, copies of weights in another dtype, what the
            optimizer's step needs, weights gathered from other processes.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    reference: int = 0
    cache: int = 0
    passes: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))


@dataclass(frozen=True)
class Shape:
    """What sharding a model depends on, in weights.

    Attributes:
        trained: how many are trained.
        total: how many the model has, tied ones counted once, without an adapter.
        largest_block: how many its largest layer has.
        outside: how many are in no layer: embeddings, output layer.
    """

    trained: int
    total: int
    largest_block: int
    outside: int


def sharded(whole: Memory, shape: Shape, *, pass_bytes: int, kind: str, processes: int) -> Memory:
    """Return the memory of each of several processes.

    One process: everything. Plain data parallelism: everything, and the buckets in which gradients
    are sent, a copy of them. FSDP2: an equal share of weights, gradients, states and reference;
    gathered for a pass are two layers (the one computed and the next), what is in no layer, and in
    a backward pass one layer's gradients. ZeRO-1 shards states, ZeRO-2 also gradients, ZeRO-3 also
    weights and reference. DeepSpeed under bf16 keeps weights and gradients in 16 bits, and trains
    a float32 copy that it shards with the states.

    Args:
        whole: what a single process would need; `passes` without copies of weights.
        shape: of the model.
        pass_bytes: bytes of a weight as a pass reads it: 2 under bf16, else as it is stored.
        kind: of launch (`pipeline.recipe.shipped.Launch.kind`).
        processes: of the launch.
    """
    if processes == 1:
        return whole

    def share(size: int) -> int:
        return -(-size // processes)

    if kind == FSDP2:
        gathered = 3 * shape.largest_block + shape.outside
        return replace(
            whole,
            weights=share(whole.weights),
            gradients=share(whole.gradients),
            optimizer=share(whole.optimizer),
            reference=share(whole.reference),
            passes=whole.passes + gathered * pass_bytes,
        )
    if not kind.startswith(zero("")):
        return replace(whole, passes=whole.passes + whole.gradients)
    stage = int(kind.removeprefix(zero("")))
    weights = min(pass_bytes * shape.total, whole.weights)
    gradients = min(pass_bytes * shape.trained, whole.gradients)
    copy = 4 * shape.trained if pass_bytes < 4 else 0
    bucket = pass_bytes * min(shape.trained, _ZERO_BUCKET)
    live = pass_bytes * min(shape.total, _ZERO3_LIVE)
    return replace(
        whole,
        weights=share(weights) if stage == 3 else weights,
        gradients=share(gradients) if stage >= 2 else gradients,
        optimizer=share(whole.optimizer + copy),
        reference=share(whole.reference) if stage == 3 else whole.reference,
        passes=whole.passes + bucket + (live if stage == 3 else 0),
    )
