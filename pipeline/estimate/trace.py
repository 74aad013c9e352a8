"""What a pass takes, found by running it on fake tensors (pipeline/estimate/skeleton.py).

The model runs a training pass, or one that writes rows, and every storage is counted from its
allocation to its release. So the model's own code, peft's adapters, autocast, activation
checkpointing and TRL's chunked output layer say what they keep, for any architecture.

What a kernel takes for itself while it runs is not seen. Two differences of a GPU are put in: TRL's
chunks are worked on by Triton kernels, which allocate no tensors; and attention is taken to keep
what the kernel of a CPU keeps (inputs, output, a number for each row), as the fused kernels of a
GPU do.
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

from pipeline.decoding.batching import logits_to_keep, tokens_of_a_pass, without_adapter
from pipeline.decoding.sampling import Sampling
from pipeline.estimate.skeleton import Skeleton, make_fake


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate, until they are released.

    Attributes:
        now: bytes alive.
        most: bytes alive at the peak.
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

        def released(_: Any) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, released)
        self.now += size
        self.most = max(self.most, self.now)


@contextlib.contextmanager
def _counting(skeleton: Skeleton) -> Iterator[Live]:
    """Make a skeleton's tensors fake, and count its weights and all that is allocated."""
    with FakeTensorMode():
        make_fake(skeleton.model)
        with Live() as live:
            for one in skeleton.model.parameters():
                live.add(one)
            yield live


@dataclass(frozen=True)
class TrainingPass:
    """A training pass.

    Attributes:
        rows: how many rows; of pairs both sides count.
        length: tokens of the longest row, to which all are padded.
        accumulates: whether the gradients of an earlier pass are there.
        autocast: 'bfloat16', 'float16', or None.
        checkpointing: whether activations are recomputed in the backward pass.
        reference: for pairs whose reference is read while training: 'model', a second model;
            'adapter', the same one without its adapter, or with a frozen one; else None.
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

    A skeleton can be traced once: its model is prepared for training, its tensors become fake.

    Raises:
        RuntimeError: when the model's code depends on values, which fake tensors do not have.
    """
    from trl.trainer.utils import add_fused_lm_head

    model = skeleton.model
    inner = without_adapter(model)
    outputs = ("log_probs", "entropy", "is_top1", *(["mean_logits"] if given.reference else []))
    add_fused_lm_head(inner, outputs=outputs)
    if given.checkpointing:
        inner.activation_checkpointing_enable()
        if model is not inner:
            model.enable_input_require_grads()
    model.train()
    with _kernels(on_gpu=given.on_gpu), warnings.catch_warnings(), _counting(skeleton) as live:
        warnings.simplefilter("ignore")
        ids = torch.zeros(given.rows, given.length, dtype=torch.long)
        read = {
            "input_ids": ids,
            "labels": torch.zeros_like(ids),
            "attention_mask": _mask(given.rows, given.length),
            "use_cache": False,
            "fused_lm_head": True,
        }
        for _ in range(1 + given.accumulates):
            _train_once(model, read, given)
        return live.most


def _kernels(*, on_gpu: bool) -> Any:
    """Have TRL's chunked output layer allocate what it allocates on this kind of device."""
    from trl.kernels import chunked_logprob

    if not on_gpu:
        return contextlib.nullcontext()
    kernels = ("_forward_tile", "_backward_tile", "_addmm_fp32")
    return mock.patch.multiple(chunked_logprob, **dict.fromkeys(kernels, lambda *_, **__: None))


def _mask(rows: int, length: int) -> torch.Tensor:
    """The mask that rows of different lengths have."""
    return torch.ones(rows, 1, length, length, dtype=torch.bool)


def _train_once(model: Any, read: dict[str, Any], given: TrainingPass) -> None:
    def log_probs() -> Any:
        chosen = given.autocast and getattr(torch, given.autocast)
        with torch.autocast("cpu", chosen) if chosen else contextlib.nullcontext():
            return model(**read).log_probs

    found = log_probs()
    if given.reference:
        # A second model allocates what the first one does, without gradients.
        with torch.no_grad():
            reference = log_probs()
        found = -torch.nn.functional.logsigmoid(found.sum(dim=1) - reference.sum(dim=1))
    found.sum().backward()


@dataclass(frozen=True)
class WritingPass:
    """The largest passes of a step that writes rows.

    Attributes:
        slots: rows written at once; 0 where no token is written after another.
        columns: tokens of the longest row, prompt and answer.
        prompt: tokens of the longest prompt.
        window: tokens of an answer that are read at once.
        sampled: tokens that are sampled at once; 0 where decoding, or labelling, is greedy.
        labelled: rows of which a plain pass without a cache reads answers, for labels or losses.
        on_gpu: whether it is for a GPU.
    """

    slots: int
    columns: int
    prompt: int
    window: int = 1
    sampled: int = 0
    labelled: int = 0
    on_gpu: bool = False

    @property
    def tokens(self) -> int:
        """How many tokens a pass without a cache holds, and one that reads prompts."""
        return tokens_of_a_pass(torch.device("cuda" if self.on_gpu else "cpu"))


def writing_peak(skeleton: Skeleton, given: WritingPass) -> tuple[int, int]:
    """Return the most bytes that writing rows has alive, and those of its cache among them.

    A skeleton can be traced once.

    Raises:
        RuntimeError: as `training_peak`.
    """
    inner = without_adapter(skeleton.model.eval())
    with torch.no_grad(), _counting(skeleton) as live:
        cache = _decode(inner, given) if given.slots else 0
        if given.labelled:
            _read_answers(inner, given)
        return live.most, cache


def reading_peak(skeleton: Skeleton, tokens: int) -> int:
    """Return the most bytes that reading one prompt for its next token has alive.

    A skeleton can be traced once.

    Raises:
        RuntimeError: as `training_peak`.
    """
    model = skeleton.model.eval()
    with torch.no_grad(), _counting(skeleton) as live:
        ids = torch.zeros(1, tokens, dtype=torch.long)
        mask = torch.zeros(1, 1, tokens, tokens, dtype=model.dtype)
        model(input_ids=ids, attention_mask=mask, use_cache=False, **logits_to_keep(model, 1))
        return live.most


def _decode(inner: Any, given: WritingPass) -> int:
    """Read prompts, then a window of all rows, as decoding/jacobi.py does; returns the cache."""
    from transformers.cache_utils import Cache

    from pipeline.decoding.kv_cache import _PlacedLayer, _Places

    none = torch.zeros(0, dtype=torch.long)
    places = _Places(none[:, None], none)
    count = inner.config.get_text_config().num_hidden_layers
    layers = [_PlacedLayer(places, given.slots, given.columns + 1) for _ in range(count)]
    cache = Cache(layers=list(layers))
    prompts = min(max(1, given.tokens // max(given.prompt, 1)), given.slots)
    for rows, width, shown in (
        (prompts, given.prompt, given.prompt),
        (given.slots, given.window, given.columns),
    ):
        places.columns_RW = torch.zeros(rows, width, dtype=torch.long)
        places.slots_R = torch.zeros(rows, dtype=torch.long)
        places.all_slots = rows == given.slots
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


def _read_answers(inner: Any, given: WritingPass) -> None:
    """Read whole rows at once, and the logits of answers, as pipeline/rows/corrections.py does."""
    from pipeline.rows.corrections import _COPIED_LOGITS, _LOGITS

    rows = min(max(1, given.tokens // given.columns), given.labelled)
    ids, mask = torch.zeros(rows, given.columns, dtype=torch.long), _mask(rows, given.columns)
    hidden = inner.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    answers = hidden[:, -max(given.columns - given.prompt, 1) :].clone()
    vocabulary = inner.config.get_text_config().vocab_size
    chunk = max(_LOGITS // (rows * vocabulary), 1)
    logits = inner.get_output_embeddings()(answers[:, :chunk]).flatten(0, 1)
    del hidden, mask  # of the model's pass, which has ended
    part = logits[: max(_COPIED_LOGITS // vocabulary, 1)]
    if given.sampled:
        Sampling(0, 1.0).noisy(part, torch.zeros(len(part), dtype=torch.long)).argmax(dim=-1)
    part.float().log_softmax(dim=-1)
