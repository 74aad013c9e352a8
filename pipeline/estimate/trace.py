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
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.decoding.batching import tokens_of_a_pass, without_adapter
from pipeline.decoding.sampling import Sampling
from pipeline.estimate.skeleton import Skeleton, make_fake


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


def _kernels(*, on_gpu: bool) -> AbstractContextManager[Any]:
    """Let TRL's chunked output layer make the tensors it makes on this kind of device."""
    from trl.kernels import chunked_logprob

    if not on_gpu:
        return contextlib.nullcontext()
    kernels = ("_forward_tile", "_backward_tile", "_addmm_fp32")
    return mock.patch.multiple(chunked_logprob, **dict.fromkeys(kernels, lambda *_, **__: None))


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
        make_fake(model)
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
        make_fake(model)
        with live:
            for one in model.parameters():
                live.add(one)
            cache = _decode(inner, given) if given.slots else 0
            if given.labels:
                _read_plainly(inner, given)
            return live.most, cache


def _decode(inner: Any, given: WritingPass) -> int:
    """Read prompts, then a window of all rows, as decoding/jacobi.py does; returns the cache."""
    from transformers.cache_utils import Cache

    from pipeline.decoding.kv_cache import _PlacedLayer, _Places

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
        # Not `sample`, which also looks at the values: fake tensors have none.
        Sampling(0, 1.0, excluded_ids=(0,)).noisy(logits, keys).argmax(dim=-1)
    return sum(2 * layer.keys.nbytes for layer in layers if layer.keys is not None)


def _read_plainly(inner: Any, given: WritingPass) -> None:
    """Read whole rows and the logits of answers, as pipeline.rows.corrections does."""
    from pipeline.rows.corrections import _COPIED_LOGITS, _LOGITS

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
