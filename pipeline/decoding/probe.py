"""Tests on the model itself which way of decoding leaves its logits unchanged.

A few random tokens are run as an engine would run them, and the logits are compared with those of
the reference computation: one row, one pass, no cache. If they differ by more than rounding, we
fall back to a slower way that agrees, in the end to the reference computation itself.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from pipeline.decoding.batching import logits_to_keep, pad_left, rope_limit, without_adapter
from pipeline.decoding.kv_cache import Reader
from pipeline.decoding.steps import Steps, read_on

# The longest row that is tested, to keep the test short on a CPU. Attention windows longer than it
# are recognised only by their name in the config.
_LONGEST = 512
# Tokens whose distributions are compared.
_COMPARED = 8
_WINDOWS = (
    "sliding_window", "window_size", "attention_window_size", "attention_chunk_size",
    "local_attention_window_len", "local_attention",
)  # fmt: skip
# Layers that attend to all earlier tokens, maybe within a window, or only to their own token.
_LAYERS = {"full_attention", "attention", "sliding_attention", "chunked_attention"}
_LAYERS |= {"sparse", "dense", "moe"}
# Largest relative difference of logits: the root mean square of the difference over that of the
# logits, each centred on its mean. In bfloat16, logits of SmolLM2-135M change by 0.01 to 0.03 with
# the shape of the pass, and by 0.12 to 0.23 when a row is shifted by one position.
_ROUNDING = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.06}
_REFUSALS = (
    AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


# From fast to slow; the last one is the reference computation.
_WAYS = (
    Steps(together=True),
    Steps(together=True, masked=False),
    Steps(together=False),
    Steps(together=False, masked=False),
    Steps(together=False, cached=False),
)
_READABLE: WeakKeyDictionary[Any, dict[int, bool]] = WeakKeyDictionary()
_STEPS: WeakKeyDictionary[Any, Steps] = WeakKeyDictionary()


def can_read(model: Any, longest: int) -> bool:
    """Whether `Reader` reproduces a model's logits, for rows of at most `longest` tokens.

    False if an attention window is shorter than the rows, since our mask is fully causal, and for
    unknown kinds of layers. What the config does not reveal is tested on two rows at distant
    columns, the longer one as long as the rows (up to 512 tokens). That catches models which build
    their own mask (BLOOM's ALiBi), measure a window from the last column (GPT-Neo), keep a
    recurrent state (Mamba) or do not accept such a cache.
    """
    if longest < 2:  # a single token has no earlier columns to attend to
        return True
    config = without_adapter(model).config.get_text_config()
    if longest > min([rope_limit(model), *_windows(config)]):
        return False
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not set(kinds or ()) <= _LAYERS:
        return False
    # A model that passed with longer rows is not tested again with shorter ones.
    known, size = _READABLE.setdefault(model, {}), min(longest, _LONGEST)
    if not any(tried >= size for tried, fits in known.items() if fits):
        if size not in known:
            known[size] = _reads_alike(model, size)
        return known[size]
    return True


@torch.no_grad()
def steps_of(model: Any) -> Steps:
    """The fastest way to decode a model token by token that leaves its logits unchanged."""
    if model not in _STEPS:
        # Two lengths, so that the shorter row is padded.
        rows = [_drawn(model, size, seed) for seed, size in enumerate((20, 13))]
        plain = [_plain(model, row) for row in rows]
        _STEPS[model] = next(
            steps for steps in _WAYS if not steps.cached or _steps_alike(model, rows, plain, steps)
        )
    return _STEPS[model]


def _windows(config: Any) -> list[int]:
    """Sizes of the attention windows named in a config."""
    return [value for name in _WINDOWS if isinstance(value := getattr(config, name, None), int)]


def _drawn(model: Any, size: int, seed: int) -> list[int]:
    """Random token ids, the same in every process."""
    vocabulary = without_adapter(model).config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (size,), generator=generator).tolist()


@torch.no_grad()
def _plain(model: Any, row: list[int]) -> torch.Tensor:
    """Logits of a row's last tokens from one pass over it alone: [K, V]."""
    ids = torch.tensor([row], device=model.device)
    kept = logits_to_keep(model, _COMPARED)
    return model(input_ids=ids, use_cache=False, **kept).logits[0, -_COMPARED:]


@torch.no_grad()
def _reads_alike(model: Any, size: int) -> bool:
    """Run two rows through `Reader`: first a prefill, then the tokens that are compared."""
    rows = [_drawn(model, length, seed) for seed, length in enumerate((size, -(-size // 2)))]
    plain = [_plain(model, row) for row in rows]
    device = model.device
    # Both rows end with _COMPARED tokens that are read in one pass, each row at its own columns;
    # what comes before them is prefilled, as in Jacobi decoding.
    ids_RL = torch.tensor([row + [0] * (size - len(row)) for row in rows], device=device)
    sizes_R1 = torch.tensor([[len(row)] for row in rows], device=device)
    first_R1 = (sizes_R1 - _COMPARED).clamp(min=0)
    columns_RL = torch.arange(size, device=device).expand(2, -1)
    try:
        with Reader(model, 2, size) as reader:
            before_RL = columns_RL < first_R1
            width = int(first_R1.max())
            if width:
                ids_RW, columns_RW, before_RW = (
                    each[:, :width] for each in (ids_RL, columns_RL, before_RL)
                )
                reader.read(ids_RW, columns_RW, before_RW, width)
            at_RK = first_R1 + torch.arange(_COMPARED, device=device)
            inside_RK = at_RK < sizes_R1
            at_RK = at_RK.clamp(max=size - 1)
            needed_N = inside_RK.nonzero(as_tuple=True)
            found = reader.read(ids_RL.gather(1, at_RK), at_RK, inside_RK, size, needed_N)
    except _REFUSALS:
        return False
    return _alike(found, torch.cat(plain), model.dtype)


def _steps_alike(
    model: Any, rows: list[list[int]], plain: list[torch.Tensor], steps: Steps
) -> bool:
    """Prefill all but the last tokens of rows, and decode those one at a time with a cache."""
    try:
        for group in (
            [range(len(rows))] if steps.together else [[place] for place in range(len(rows))]
        ):
            start = 1 - _COMPARED
            ids, mask = pad_left([rows[place][:start] for place in group], model.device)
            logits, past = read_on(model, ids, mask, {}, steps)
            found = [logits]
            for at in range(start, 0):
                if not past:  # the model returned no cache, so this way does not exist for it
                    return False
                ids = torch.tensor([[rows[place][at]] for place in group], device=model.device)
                mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
                logits, past = read_on(model, ids, mask, past, steps)
                found.append(logits)
            for number, place in enumerate(group):
                read = torch.stack([logits[number] for logits in found])
                if not _alike(read, plain[place], model.dtype):
                    return False
    except _REFUSALS:
        return False
    return True


def _alike(found: torch.Tensor, plain: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether two sets of logits, [N, V], differ only by rounding and a constant."""
    if found.shape != plain.shape:
        return False
    centred = [part.double() - part.double().mean(dim=-1, keepdim=True) for part in (found, plain)]
    apart = (centred[0] - centred[1]).pow(2).sum().sqrt()
    return bool(apart <= _ROUNDING[dtype] * centred[1].pow(2).sum().sqrt())
