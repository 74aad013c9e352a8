"""What a pass takes, found by playing it through on tensors that hold nothing.

torch's fake tensors have a shape, a dtype and a lifetime, and no memory. A model is built from its
config on the meta device, takes a training pass (or one that writes rows) on fake tensors, and
every storage is counted from its making to its end. So the model's own code, peft's adapters,
autocast, activation checkpointing and TRL's chunked output layer say what they keep, for any
architecture.

Not seen is what a kernel takes for itself while it runs. Two differences of a GPU are put in:
TRL's chunks are then worked on by Triton kernels, which make no tensors; and attention is taken to
keep what the kernel of a CPU keeps (inputs, output, a number a row), as the fused kernels of a GPU
do.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.contexts import Sampling, tokens_of_a_pass, without_adapter
from pipeline.errors import InputError
from pipeline.memory import Shape, Weight, four_bit_bytes
from pipeline.weights import Trust


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, until they end.

    Attributes:
        now: bytes alive.
        most: bytes alive at the worst moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = operation(*arguments, **(options or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return result

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, if it is not counted yet."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def ended(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, ended)
        self.now += size
        self.most = max(self.most, self.now)


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
        blocks: numbers of its largest layer.
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


def _fake(model: torch.nn.Module) -> None:
    """Give a model on the meta device fake tensors of a CPU; tied ones stay tied."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake: Any = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, torch.nn.Parameter):
                        fake = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = (
                        fake,
                        tensor,
                    )  # the tensor too, so that its id stays its own
                store[name] = made[id(tensor)][0]


@contextlib.contextmanager
def _kernels(*, on_gpu: bool) -> Iterator[None]:
    """Let TRL's chunked output layer make the tensors it makes on this kind of device."""
    from trl.kernels import chunked_logprob

    with contextlib.ExitStack() as stack:
        if on_gpu:
            for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
                stack.enter_context(mock.patch.object(chunked_logprob, name, lambda *_, **__: None))
        yield


@dataclass(frozen=True)
class TrainingPass:
    """A training pass.

    Attributes:
        rows: rows in it; of pairs both sides count.
        length: tokens of its longest row, to which all are padded.
        accumulates: whether the gradients of an earlier pass are there.
        autocast: 'bfloat16', 'float16', or None.
        checkpointing: whether activations are made again in the backward pass.
        reference: for pairs, whose pass says what is preferred before training: 'model', a second
            model; 'adapter', the same one without its adapter, or with a frozen one; else None.
        on_gpu: whether it is for a GPU.
    """

    rows: int
    length: int
    accumulates: bool = False
    autocast: str | None = None
    checkpointing: bool = False
    reference: str | None = None
    on_gpu: bool = False


def training_peak(skeleton: Skeleton, given: TrainingPass) -> int:
    """Return the most bytes a training pass has alive, optimizer states left out.

    The skeleton is used up: its tensors are fake ones afterwards.

    Raises:
        RuntimeError: when the model's code decides by numbers, which fake tensors do not have.
    """
    from trl.trainer.utils import add_fused_lm_head

    model = skeleton.model
    inner = without_adapter(model)
    outputs: tuple[str, ...] = ("log_probs", "entropy", "is_top1")
    if given.reference:
        outputs = (*outputs, "mean_logits")
    add_fused_lm_head(inner, outputs=outputs)
    if given.checkpointing:
        inner.activation_checkpointing_enable()
        if model is not inner:
            model.enable_input_require_grads()
    model.train()
    live = Live()
    with FakeTensorMode(), _kernels(on_gpu=given.on_gpu), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _fake(model)
        with live:
            for one in model.parameters():
                live.add(one)
            ids = torch.zeros(given.rows, given.length, dtype=torch.long)
            read = {
                "input_ids": ids,
                "labels": torch.zeros_like(ids),
                "attention_mask": _mask(given.rows, given.length),
                "use_cache": False,
                "fused_lm_head": True,
            }
            for _ in range(1 + given.accumulates):
                _pass(model, read, given)
            return live.most


def _mask(rows: int, length: int) -> torch.Tensor:
    """The mask that rows of different lengths have."""
    return torch.ones(rows, 1, length, length, dtype=torch.bool)


def _pass(model: Any, read: dict[str, Any], given: TrainingPass) -> None:
    def autocast() -> Any:
        chosen = given.autocast and getattr(torch, given.autocast)
        return torch.autocast("cpu", chosen) if chosen else contextlib.nullcontext()

    with autocast():
        found = model(**read).log_probs
    if given.reference:
        # A second model takes what the first one takes, without gradients.
        with torch.no_grad(), autocast():
            before = model(**read).log_probs
        found = -torch.nn.functional.logsigmoid(found.sum(dim=1) - before.sum(dim=1))
    found.sum().backward()


@dataclass(frozen=True)
class WritingPass:
    """The largest passes of a step that writes rows.

    Attributes:
        slots: rows written at once; 0 where no token is written after another.
        columns: tokens of the longest row, prompt and answer.
        prompt: tokens of the longest prompt.
        window: tokens of an answer that are read at once.
        sampled: tokens that are sampled at once; 0 where the likeliest is taken.
        labels: rows times tokens of answers that a plain pass gives labels for; 0 for none.
        on_gpu: whether it is for a GPU.
    """

    slots: int
    columns: int
    prompt: int
    window: int = 1
    sampled: int = 0
    labels: int = 0
    on_gpu: bool = False


def writing_peak(skeleton: Skeleton, given: WritingPass) -> tuple[int, int]:
    """Return the most bytes that writing rows has alive, and those of its cache among them.

    The skeleton is used up, as by `training_peak`.

    Raises:
        RuntimeError: as by `training_peak`.
    """
    model = skeleton.model.eval()
    inner = without_adapter(model)
    live = Live()
    with FakeTensorMode(), torch.no_grad():
        _fake(model)
        with live:
            for one in model.parameters():
                live.add(one)
            cache = _decode(inner, given) if given.slots else 0
            if given.labels:
                _read_plainly(inner, given)
            return live.most, cache


def _decode(inner: Any, given: WritingPass) -> int:
    """Read prompts, then a window of all rows, as pipeline.parallel does; returns the cache."""
    from transformers.cache_utils import Cache

    from pipeline.reader import _PlacedLayer, _Places

    places = _Places(torch.zeros(given.slots, 0, dtype=torch.long))
    count = inner.config.get_text_config().num_hidden_layers
    layers = [_PlacedLayer(places, given.slots, given.columns + 1) for _ in range(count)]
    cache = Cache(layers=list(layers))
    at_once = max(1, _tokens_of_a_pass(given) // max(given.prompt, 1))
    for rows, width, shown in (
        (min(at_once, given.slots), given.prompt, given.prompt),
        (given.slots, given.window, given.columns),
    ):
        places.columns_RW = torch.zeros(rows, width, dtype=torch.long)
        places.slots_R = torch.zeros(rows, dtype=torch.long) if rows < given.slots else None
        places.shown = shown
        mask = torch.zeros(rows, width, shown, dtype=inner.dtype)
        mask.masked_fill_(mask > 0, 0.0)
        hidden = inner.base_model(
            input_ids=torch.zeros(rows, width, dtype=torch.long),
            attention_mask=mask[:, None],
            position_ids=places.columns_RW,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        del mask
    scored = max(given.sampled, given.slots)
    logits = inner.get_output_embeddings()(hidden[:1, :1].expand(1, scored, -1))[0]
    if given.sampled:
        keys = torch.zeros(scored, dtype=torch.long)
        Sampling(0, 1.0, excluded_ids=(0,)).pick(logits, keys)
    return sum(2 * layer.keys.nbytes for layer in layers if layer.keys is not None)


def _read_plainly(inner: Any, given: WritingPass) -> None:
    """Read whole rows and the logits of answers, as pipeline.corrections does."""
    from pipeline.corrections import _COPIED_LOGITS, _LOGITS

    rows = max(1, _tokens_of_a_pass(given) // given.columns)
    ids = torch.zeros(rows, given.columns, dtype=torch.long)
    mask = _mask(rows, given.columns)
    read = inner.base_model(input_ids=ids, attention_mask=mask, use_cache=True)
    vocabulary = inner.config.get_text_config().vocab_size
    scored = max(min(_LOGITS // vocabulary, given.labels, rows * given.columns), 1)
    logits = inner.get_output_embeddings()(read.last_hidden_state.flatten(0, 1)[:scored])
    logits[: max(_COPIED_LOGITS // vocabulary, 1)].float().log_softmax(dim=-1)


def _tokens_of_a_pass(given: WritingPass) -> int:
    return tokens_of_a_pass(torch.device("cuda" if given.on_gpu else "cpu"))
