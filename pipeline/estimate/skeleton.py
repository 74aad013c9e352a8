"""Models without weights: built from a config, on tensors that hold nothing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.decoding.batching import without_adapter
from pipeline.errors import InputError
from pipeline.estimate.memory import Shape, Weight, four_bit_bytes
from pipeline.models.trust import Trust


class _FourBitProduct(torch.autograd.Function):
    """As bitsandbytes does it: the weight is unpacked for each product, the input is not kept."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, columns: int) -> torch.Tensor:
        ctx.shape = inputs.shape
        return inputs @ inputs.new_empty(inputs.shape[-1], columns)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore
        return gradient @ gradient.new_empty(gradient.shape[-1], ctx.shape[-1]), None


class FourBitLinear(torch.nn.Linear):
    """A linear layer whose weight is kept in 4 bits."""

    def __init__(self, plain: torch.nn.Linear, compute: torch.dtype):
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        packed = four_bit_bytes(plain.weight.numel())
        empty = torch.empty(packed, dtype=torch.uint8, device="meta")
        self.weight = torch.nn.Parameter(empty, requires_grad=False)
        self.bias = plain.bias
        self.compute = compute

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        """Multiply in the dtype of computing, and give back that of the input."""
        found: Any = _FourBitProduct.apply(inputs.to(self.compute), self.out_features)
        found = found if self.bias is None else found + self.bias.to(self.compute)
        return found.to(inputs.dtype)


@dataclass
class Skeleton:
    """A model without weights, on the meta device.

    Attributes:
        model: of transformers, or of peft.
        total: numbers of the model itself, tied ones once, an adapter left out.
        largest_block: numbers of its largest layer.
        outside: numbers in no layer.
    """

    model: Any
    total: int
    largest_block: int
    outside: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all it holds."""
        return sum(one.numel() * one.element_size() for one in self.model.parameters())

    @property
    def trained(self) -> list[Weight]:
        """The weights that are trained, tied ones once."""
        embedding = without_adapter(self.model).get_input_embeddings().weight
        return [
            Weight(tuple(one.shape), str(one.dtype).removeprefix("torch."), one is embedding)
            for one in self.model.parameters()
            if one.requires_grad
        ]

    def shape(self, *, pass_bytes: int) -> Shape:
        """What sharing it out depends on."""
        trained = sum(one.count for one in self.trained)
        return Shape(trained, self.total, self.largest_block, self.outside, pass_bytes)


def build(
    config: Any,
    *,
    dtype: str,
    lora: dict[str, Any] | None = None,
    trains: bool = True,
    quantize: str | None = None,
    trust: Trust = Trust(),  # noqa: B008 - it is frozen
) -> Skeleton:
    """Build a model from its config, without weights.

    Args:
        config: of transformers.
        dtype: of its weights, as words: 'float32' and so on.
        lora: options of `peft.LoraConfig`; None for the model alone.
        trains: whether it is trained: an adapter is then kept in float32.
        quantize: 'nf4' for linear layers in 4 bits.
        trust: whether code that comes with the model may run.

    Raises:
        InputError: when transformers has no causal language model for the config.
    """
    from transformers import AutoModelForCausalLM

    kind = getattr(torch, dtype)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=kind, trust_remote_code=trust.code
            )
    except ValueError as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"no model can be built from the config of {config.model_type}: {said}"
        ) from error
    model.requires_grad_(trains and lora is None)
    total = sum(one.numel() for one in model.parameters())
    blocks = _block_sizes(model)
    if quantize is not None:
        _quantize(model, kind)
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(**{"task_type": "CAUSAL_LM", **lora})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training says what there is to say
            model = get_peft_model(model, adapter, autocast_adapter_dtype=trains)
    return Skeleton(model, total, max(blocks, default=total), total - sum(blocks))


def _block_sizes(model: torch.nn.Module) -> list[int]:
    """Numbers of each layer: of the list of modules that holds most."""
    lists = [
        [sum(one.numel() for one in block.parameters()) for block in module]
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList)
    ]
    return max(lists, key=sum, default=[])


def _quantize(model: Any, compute: torch.dtype) -> None:
    """Put 4-bit layers in the place of linear ones, but for the output layer."""
    spared = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear and child is not spared:
                setattr(module, name, FourBitLinear(child, compute))


def make_fake(model: torch.nn.Module) -> None:
    """Give a model on the meta device fake tensors of a CPU; tied ones stay tied."""
    made: dict[torch.Tensor, Any] = {}  # tensors are told apart by identity
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    fake: Any = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, torch.nn.Parameter):
                        fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    made[tensor] = fake
                store[name] = made[tensor]
