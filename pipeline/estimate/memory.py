"""How much memory training and row-writing take: the arithmetic, in bytes.

What a pass takes (activations, logits, cache) comes from pipeline/estimate/trace.py; here stand
what weights, gradients and optimizer states take, and what is shared out among processes.

Sources: Rajbhandari et al. 2020, "ZeRO" (arXiv 1910.02054), figure 1, for what each stage shares
out; Dettmers et al. 2022 (arXiv 2110.02861) for 8-bit states, and Dettmers et al. 2023, "QLoRA"
(arXiv 2305.14314), for 4-bit weights; the sources of torch, transformers, TRL and bitsandbytes for
what is kept in which dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace

from pipeline.recipe.shipped import FSDP2, zero

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# A block of so many 8-bit numbers has one float32 scale; smaller weights keep 32-bit states.
_BLOCK_8BIT, _SMALLEST_8BIT = 256, 4096
# The scale of a block of 64 4-bit weights is a float32, or, quantised again ("double"), 8 bits and
# one float32 for 256 of them.
_BLOCK_4BIT, _BLOCK_DOUBLE = 64, 256
# DeepSpeed's defaults, in weights: what ZeRO-3 keeps gathered at once, what is reduced at once.
_ZERO3_LIVE, _ZERO_BUCKET = 10**9, 5 * 10**8


@dataclass(frozen=True)
class Weight:
    """One trained tensor.

    Attributes:
        shape: its sizes.
        dtype: 'float32', 'bfloat16' or 'float16'.
        embeds: whether it is an embedding, which bitsandbytes' 8-bit optimizers spare.
    """

    shape: tuple[int, ...]
    dtype: str
    embeds: bool = False

    @property
    def count(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """What it takes; its gradient takes the same."""
        return self.count * BYTES[self.dtype]


@dataclass(frozen=True)
class _Optimizer:
    """What an optimizer keeps for a weight.

    Attributes:
        states: how many numbers it keeps for each number of a weight.
        state_bytes: bytes of each; None: those of the weight's dtype.
        copies: how many copies of all trained weights a step makes while it runs.
        factored: whether it keeps a number a row and a column in place of one a weight.
    """

    states: int
    state_bytes: int | None = None
    copies: int = 0
    factored: bool = False


_OPTIMIZERS = {
    "adamw_torch": _Optimizer(2, copies=1),  # torch's foreach keeps the roots of a whole step
    "adamw_torch_fused": _Optimizer(2),
    "adamw_bnb_8bit": _Optimizer(2, 1),
    "adamw_8bit": _Optimizer(2, 1),
    "paged_adamw_8bit": _Optimizer(2, 1),
    "paged_adamw_32bit": _Optimizer(2, 4),
    "ademamix": _Optimizer(3, 4),
    "ademamix_8bit": _Optimizer(3, 1),
    "paged_ademamix_32bit": _Optimizer(3, 4),
    "paged_ademamix_8bit": _Optimizer(3, 1),
    "lion_32bit": _Optimizer(1, 4),
    "lion_8bit": _Optimizer(1, 1),
    "paged_lion_32bit": _Optimizer(1, 4),
    "paged_lion_8bit": _Optimizer(1, 1),
    "rmsprop_bnb": _Optimizer(1, 4),
    "rmsprop_bnb_32bit": _Optimizer(1, 4),
    "rmsprop_bnb_8bit": _Optimizer(1, 1),
    "rmsprop": _Optimizer(1, copies=1),
    "adagrad": _Optimizer(1, copies=1),
    "sgd": _Optimizer(0),
    "adafactor": _Optimizer(0, factored=True),
}
DEFAULT_OPTIMIZER = "adamw_torch_fused"  # of transformers (a test compares)


def known_optimizer(name: str) -> bool:
    """Whether it is known what an optimizer keeps; of others AdamW's states are reckoned."""
    return name in _OPTIMIZERS


def optimizer_bytes(weights: Iterable[Weight], name: str) -> int:
    """Bytes of an optimizer's states, after its first step.

    Args:
        weights: those that are trained.
        name: `trainer.optim`.
    """
    kept = _OPTIMIZERS.get(name, _OPTIMIZERS[DEFAULT_OPTIMIZER])
    return sum(_state_bytes(weight, kept) for weight in weights)


def _state_bytes(weight: Weight, kept: _Optimizer) -> int:
    if kept.factored:
        if len(weight.shape) < 2:
            return 4 * weight.count
        rows, columns = weight.count // weight.shape[-1], weight.count // weight.shape[-2]
        return 4 * (rows + columns)
    each = BYTES[weight.dtype] if kept.state_bytes is None else kept.state_bytes
    if each == 1:
        if weight.embeds or weight.count < _SMALLEST_8BIT:
            each = 4
        else:
            scales = -(-weight.count // _BLOCK_8BIT)
            return kept.states * (weight.count + 4 * scales)
    return kept.states * each * weight.count


def optimizer_step_bytes(weights: Iterable[Weight], name: str, *, on_gpu: bool) -> int:
    """Bytes that a step of the optimizer needs for as long as it runs.

    On a GPU torch updates all weights in one go unless fused; elsewhere one weight at a time, as
    adafactor does anywhere: the squared gradient, the update and a copy of both.
    """
    kept = _OPTIMIZERS.get(name, _OPTIMIZERS[DEFAULT_OPTIMIZER])
    sizes = [weight.bytes for weight in weights]
    if kept.factored:
        return 3 * max(sizes, default=0)
    return kept.copies * (sum(sizes) if on_gpu else max(sizes, default=0))


def four_bit_bytes(count: int, *, double: bool = True) -> int:
    """Bytes of `count` weights of linear layers in nf4 with their scales."""
    scales = -(-count // _BLOCK_4BIT)
    each = scales + 4 * -(-scales // _BLOCK_DOUBLE) if double else 4 * scales
    return -(-count // 2) + each


@dataclass(frozen=True)
class Memory:
    """What one process holds at its fullest, in bytes.

    Attributes:
        weights: of the model, as it lies there (an adapter and 4-bit scales included).
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
    """What sharing a model out among processes depends on.

    Attributes:
        trained: numbers that are trained.
        total: numbers of the model, in `weights` of `Memory`.
        largest_block: numbers of its largest layer.
        outside: numbers in no layer: embeddings, output layer.
        pass_bytes: bytes of a number while a pass reads it: 2 under bf16, else as it is kept.
    """

    trained: int
    total: int
    largest_block: int
    outside: int
    pass_bytes: int


def shared_out(whole: Memory, shape: Shape, *, kind: str, processes: int) -> Memory:
    """Return what each of several processes holds.

    One process: everything. Plain data parallelism: everything, and the buckets in which gradients
    are sent, a copy of them. FSDP2: an equal share of weights, gradients, states and reference;
    gathered for a pass are two layers (the one computed and the next), what is in no layer, and in
    a backward pass one layer's gradients. ZeRO-1 shares states out, ZeRO-2 also gradients, ZeRO-3
    also weights and reference. DeepSpeed under bf16 keeps weights and gradients in 16 bits, and
    trains a float32 copy that it shares out with the states.

    Args:
        whole: what a single process would hold; `passes` without copies of weights.
        shape: of the model.
        kind: of launch (`pipeline.recipe.shipped.Launch.kind`).
        processes: of the launch.
    """
    if processes == 1:
        return whole

    def share(size: float) -> int:
        return -(-round(size) // processes)

    if kind == FSDP2:
        gathered = 3 * shape.largest_block + shape.outside
        return replace(
            whole,
            weights=share(whole.weights),
            gradients=share(whole.gradients),
            optimizer=share(whole.optimizer),
            reference=share(whole.reference),
            passes=whole.passes + gathered * shape.pass_bytes,
        )
    if not kind.startswith(zero("")):
        return replace(whole, passes=whole.passes + whole.gradients)
    stage = int(kind.removeprefix(zero("")))
    bytes_kept = min(shape.pass_bytes * shape.total, whole.weights)
    gradients = min(shape.pass_bytes * shape.trained, whole.gradients)
    copy = 4 * shape.trained if shape.pass_bytes < 4 else 0
    bucket = shape.pass_bytes * min(shape.trained, _ZERO_BUCKET)
    live = shape.pass_bytes * min(shape.total, _ZERO3_LIVE)
    return replace(
        whole,
        weights=share(bytes_kept) if stage == 3 else bytes_kept,
        gradients=share(gradients) if stage >= 2 else gradients,
        optimizer=share(whole.optimizer + copy),
        reference=share(whole.reference) if stage == 3 else whole.reference,
        passes=whole.passes + bucket + (live if stage == 3 else 0),
    )
