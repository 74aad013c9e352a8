"""Models without weights, built from a config on the meta device.

To be traced they get torch's fake tensors, which have a shape, a dtype and a lifetime, but no
memory. (They are not built of them: peft cannot convert fake weights.)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.decoding.batching import without_adapter
from pipeline.errors import InputError
from pipeline.estimate.memory import Shape, four_bit_bytes
from pipeline.models.load import UNTRUSTED
from pipeline.models.trust import Trust
from pipeline.recipe.schema import LoraOptions


class _FourBitProduct(torch.autograd.Function):
    """As in bitsandbytes: the weight is unpacked for each product, and no input is saved."""

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
        """Multiply in the compute dtype, and return that of the input."""
        product: Any = _FourBitProduct.apply(inputs.to(self.compute), self.out_features)
        if self.bias is not None:
            product = product + self.bias.to(self.compute)
        return product.to(inputs.dtype)


@dataclass(frozen=True)
class Skeleton:
    """A model without weights.

    Attributes:
        model: of transformers, or of peft.
        shape: its numbers of weights.
    """

    model: Any
    shape: Shape

    @property
    def weight_bytes(self) -> int:
        """Bytes of all its weights."""
        return sum(one.nbytes for one in self.model.parameters())

    @property
    def trained(self) -> list[torch.Tensor]:
        """The weights that are trained, tied ones once."""
        return [one for one in self.model.parameters() if one.requires_grad]

    @property
    def embedding(self) -> torch.Tensor:
        """The weights of its input embeddings."""
        return without_adapter(self.model).get_input_embeddings().weight


def build(
    config: Any,
    *,
    dtype: str,
    lora: LoraOptions | None = None,
    trains: bool = True,
    quantize: str | None = None,
    trust: Trust = UNTRUSTED,
) -> Skeleton:
    """Build a model from its config, without weights.

    Args:
        config: of transformers.
        dtype: of its weights: 'float32' and so on.
        lora: options of `peft.LoraConfig`; None for the model alone.
        trains: whether it is trained: an adapter is then kept in float32.
        quantize: 'nf4' for linear layers in 4 bits.
        trust: whether code that comes with the model may run.

    Raises:
        InputError: when transformers has no causal language model for the config.
    """
    from transformers import AutoModelForCausalLM

    torch_dtype = getattr(torch, dtype)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch_dtype, trust_remote_code=trust.code
            )
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"transformers cannot build a causal language model of type {config.model_type}: "
            f"{reason}"
        ) from error
    model.requires_grad_(trains and lora is None)
    total = sum(one.numel() for one in model.parameters())
    blocks = _block_sizes(model)
    if quantize is not None:
        _quantize(model, torch_dtype)
    if lora is not None:
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(**{"task_type": "CAUSAL_LM", **lora})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training itself will warn
            # Not under torch.device("meta"), where peft leaves an adapter in float32.
            model = get_peft_model(model, adapter, autocast_adapter_dtype=trains)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    shape = Shape(trained, total, max(blocks, default=total), total - sum(blocks))
    return Skeleton(model, shape)


def _block_sizes(model: torch.nn.Module) -> list[int]:
    """How many weights each layer has; the layers are the list of modules with most of them."""
    lists = [
        [sum(one.numel() for one in block.parameters()) for block in module]
        for module in model.modules()
        if isinstance(module, torch.nn.ModuleList)
    ]
    return max(lists, key=sum, default=[])


def _quantize(model: Any, compute: torch.dtype) -> None:
    """Replace linear layers by 4-bit ones, except the output layer."""
    output = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear and child is not output:
                setattr(module, name, FourBitLinear(child, compute))


def make_fake(model: torch.nn.Module) -> None:
    """Replace a meta model's tensors by fake ones on a CPU; tied ones stay tied."""
    made: dict[torch.Tensor, Any] = {}  # keyed by identity, which is how tensors hash
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    fake: Any = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, torch.nn.Parameter):
                        fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    made[tensor] = fake
                tensors[name] = made[tensor]
