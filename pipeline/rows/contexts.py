"""BASH contexts: reference answers in which some tokens are self-generated (Cen et al. 2025).

For t = 1..T, g_t = y_t with probability 1 - beta, else a token sampled from pi(. | x, g_<t).

Decisions where the paper is silent:
1. Prompt tokens, excluded tokens (end, beginning, padding) and the last token are never replaced.
2. Excluded tokens are never sampled either, so a context never ends early.
3. Temperature 1 and no top-k or top-p by default.
4. Which positions are replaced, and the sampling noise, depend only on (seed, row id, position):
   a position replaced at some beta is also replaced at every larger one.
5. `context="gold"` conditions the sampled token on y_<t instead of g_<t: one forward pass, the
   two-pass approximation of Mihaylova and Martins (2019).

The engine `parallel` is Jacobi decoding (pipeline/decoding/jacobi.py), which decodes many positions
per pass; `sequential` decodes one. Both give the same tokens in float32. In 16 bits a pass of
another shape rounds differently and a few tokens differ, as they do with another batch size. Which
engines a model supports is tested on it (pipeline/decoding/probe.py). Rows long enough for LongRoPE
or dynamic NTK to depend on the longest row of a batch are decoded alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch

from pipeline.decoding import noise
from pipeline.decoding.batching import (
    forget_length,
    in_order,
    pad_left,
    pad_right,
    rope_limit,
)
from pipeline.decoding.jacobi import Reference, Row, decode
from pipeline.decoding.probe import can_read, steps_of
from pipeline.decoding.sampling import Sampling, default_excluded_ids
from pipeline.decoding.steps import read_on

ENGINES = ("parallel", "sequential")
# A gold-context pass holds the logits of all positions at once, so its batches are small.
_GOLD_BATCH = 8


def mix_contexts(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    reference_ids: Sequence[Sequence[int]],
    *,
    beta: float,
    seed: int,
    row_ids: Sequence[int],
    engine: str = "parallel",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    excluded_ids: Collection[int] | None = None,
    context: str = "mixed",
    batch_size: int = 32,
    warn: Callable[[str], object] = warnings.warn,
) -> list[list[int]]:
    """Replace reference tokens by self-generated tokens at rate `beta`.

    Args:
        model: a causal language model (or PeftModel) of transformers.
        prompt_ids: one non-empty list of token ids per row.
        reference_ids: one list of token ids per row, usually ending in an end-of-turn token.
        beta: probability of replacing a token, 0 to 1.
        seed: together with row id and position determines all randomness.
        row_ids: one number per row, the same for that row in every batch and process.
        engine: 'parallel' or 'sequential'; see the module docstring.
        temperature: above 0.
        top_k: keep only the k likeliest tokens; 0 keeps all.
        top_p: keep only the nucleus of this mass; 1 keeps all.
        excluded_ids: tokens never replaced or sampled; by default the end, beginning and padding
            ids of the model's generation config.
        context: 'mixed' or 'gold' (decision 5).
        batch_size: rows decoded together; it does not change the result.
        warn: called with a message if the model does not support the parallel engine, in which
            case the sequential one is used.

    Returns:
        One list of token ids per row, as long as its reference.

    Raises:
        ValueError: for lists of different lengths, an empty prompt, or an option out of range.
    """
    _check_arguments(prompt_ids, reference_ids, row_ids, beta, temperature, engine, context)
    excluded = tuple(default_excluded_ids(model) if excluded_ids is None else excluded_ids)
    sampling = Sampling(seed, temperature, top_k, top_p, excluded)
    done = iter_contexts(
        model,
        [
            Reference(list(prompt), list(reference), row_id)
            for prompt, reference, row_id in zip(prompt_ids, reference_ids, row_ids, strict=True)
        ],
        sampling,
        beta=beta,
        engine=engine,
        context=context,
        batch_size=batch_size,
        warn=warn,
    )
    return in_order(done, len(prompt_ids))


@torch.no_grad()
def iter_contexts(
    model: Any,
    rows: Sequence[Reference],
    sampling: Sampling,
    *,
    beta: float,
    engine: str,
    context: str,
    batch_size: int,
    warn: Callable[[str], object],
) -> Iterator[tuple[int, list[int]]]:
    """Yield (index in rows, mixed ids) as rows finish (unordered); see `mix_contexts`."""
    touched: dict[int, Row] = {}
    for place, row in enumerate(rows):
        replaced = replaced_positions(
            row.ids,
            row.row_id,
            beta=beta,
            seed=sampling.seed,
            excluded_ids=sampling.excluded_ids,
        )
        if replaced.any():
            touched[place] = Row(row.prompt, row.ids, row.row_id, replaced)
        else:  # nothing to sample: the context is the reference
            yield place, row.ids
    places = list(touched)
    for number, ids in fill(
        model,
        list(touched.values()),
        sampling,
        engine=engine,
        context=context,
        batch_size=batch_size,
        warn=warn,
    ):
        yield places[number], ids


@torch.no_grad()
def fill(
    model: Any,
    rows: Sequence[Row],
    sampling: Sampling,
    *,
    engine: str,
    context: str,
    batch_size: int,
    warn: Callable[[str], object],
) -> Iterator[tuple[int, list[int]]]:
    """Yield (index in rows, ids with the positions to replace filled in), as `iter_contexts`."""
    if not rows:
        return
    touched = dict(enumerate(rows))
    was_training = model.training
    model.eval()
    try:
        write = _mix_on_gold if context == "gold" else _mix_sequentially
        # Above the RoPE limit a result would depend on the other rows of a batch.
        limit = rope_limit(model)
        for place in list(touched):
            if touched[place].longest > limit:
                ((_, ids),) = write(model, [touched.pop(place)], sampling, 1)
                forget_length(model)
                yield place, ids
        parallel = (
            write is _mix_sequentially and engine == "parallel" and _readable(model, touched, warn)
        )
        if parallel:
            write = _mix_by_jacobi
        # Longest first, so that slots stay busy to the end. Sequential batches decode in lockstep,
        # so there it is the length of the answer that counts.
        length = {
            place: row.longest if parallel else len(row.ids) for place, row in touched.items()
        }
        order = sorted(touched, key=length.__getitem__, reverse=True)
        done = write(model, [touched[place] for place in order], sampling, batch_size)
        for number, ids in done:
            yield order[number], ids
    finally:
        model.train(was_training)


def replaced_positions(
    reference_ids: Sequence[int],
    row_id: int,
    *,
    beta: float,
    seed: int,
    excluded_ids: Collection[int],
) -> torch.Tensor:
    """Return which tokens of a row's reference to replace: bool [len(reference_ids)]."""
    positions = torch.arange(len(reference_ids))
    key_T = noise.keys(seed, torch.tensor(row_id), positions, stream=noise.REPLACE)
    chosen = noise.uniform(key_T) < beta  # one draw for every beta: decision 4
    chosen[torch.isin(torch.tensor(reference_ids), torch.tensor(list(excluded_ids)))] = False
    chosen[-1:] = False  # a slice, since a reference may be empty
    return chosen


def _readable(model: Any, rows: Mapping[int, Row], warn: Callable[[str], object]) -> bool:
    found = can_read(model, max((row.longest for row in rows.values()), default=0))
    if not found:
        warn(
            "the model does not support decoding several positions per pass, so contexts are "
            "written one token at a time (engine: sequential), which is slower"
        )
    return found


Done = Iterator[tuple[int, list[int]]]


def _mix_by_jacobi(model: Any, rows: list[Row], sampling: Sampling, batch_size: int) -> Done:
    return decode(model, rows, seed=sampling.seed, score=sampling.noisy, batch_size=batch_size)


def _check_arguments(prompt_ids, reference_ids, row_ids, beta, temperature, engine, context):
    if not len(prompt_ids) == len(reference_ids) == len(row_ids):
        raise ValueError(
            f"{len(prompt_ids)} prompts, {len(reference_ids)} references, {len(row_ids)} row ids: "
            "each row needs one of each"
        )
    if any(len(prompt) == 0 for prompt in prompt_ids):
        raise ValueError("a prompt is empty: the first answer token needs a token before it")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}, expected 0 to 1")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, expected above 0")
    if engine not in ENGINES:
        raise ValueError(f"no engine {engine!r}; engines: {', '.join(ENGINES)}")
    if context not in ("mixed", "gold"):
        raise ValueError(f"context is {context!r}, expected 'mixed' or 'gold'")


def _mix_sequentially(model: Any, rows: list[Row], sampling: Sampling, batch_size: int) -> Done:
    if rows and not steps_of(model).together:
        batch_size = 1
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        yield from enumerate(_decode_batch(model, batch, sampling), start)


def _decode_batch(model: Any, rows: list[Row], sampling: Sampling) -> list[list[int]]:
    """Decode one position at a time, feeding g_t back in (axes: B rows, T answer positions)."""
    device = model.device
    replaced_BT = pad_right([row.replaced.tolist() for row in rows], device).bool()
    input_ids, mask = pad_left([row.prompt for row in rows], device)
    mixed_BT = pad_right([row.ids for row in rows], device)
    rows_B = torch.tensor([row.row_id for row in rows], device=device)
    last = int(replaced_BT.any(dim=0).nonzero().max())  # the rest is reference
    steps, limit = steps_of(model), rope_limit(model)
    past: dict[str, Any] = {}
    for position in range(last + 1):
        # Where LongRoPE switches to its long factors the cache is invalid: prefill again, as
        # transformers' generate does.
        prefill = not past or not steps.cached or input_ids.shape[1] - 1 == limit
        new_ids = input_ids if prefill else input_ids[:, -1:]
        logits_BV, past = read_on(model, new_ids, mask, {} if prefill else past, steps)
        # Rows that have ended continue with padding, which is cut off below.
        chosen = replaced_BT[:, position]
        if chosen.any():
            key = noise.keys(
                sampling.seed, rows_B[chosen], torch.tensor(position, device=device),
                stream=noise.SAMPLE,
            )  # fmt: skip
            mixed_BT[chosen, position] = sampling.sample(logits_BV[chosen], key)
        input_ids = torch.cat([input_ids, mixed_BT[:, position : position + 1]], dim=1)
        mask = torch.cat([mask, torch.ones_like(input_ids[:, :1])], dim=1)
    return [mixed[: len(row.ids)].tolist() for mixed, row in zip(mixed_BT, rows, strict=True)]


def _mix_on_gold(model: Any, rows: list[Row], sampling: Sampling, batch_size: int) -> Done:
    """Sample every replaced position in one pass over prompt and reference."""
    device = model.device
    batch_size = min(batch_size, _GOLD_BATCH)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        joined = [row.prompt + row.ids for row in batch]
        mask = pad_right([[1] * len(ids) for ids in joined], device)
        logits = model(
            input_ids=pad_right(joined, device), attention_mask=mask, use_cache=False
        ).logits
        for number, row in enumerate(batch):
            positions = row.replaced.nonzero().flatten().to(device)
            row_id = torch.tensor(row.row_id, device=device)
            key = noise.keys(sampling.seed, row_id, positions, stream=noise.SAMPLE)
            # Right padding leaves positions as they are; logits predict the next token, hence - 1.
            picked = sampling.sample(logits[number, len(row.prompt) - 1 + positions], key)
            ids = torch.tensor(row.ids)
            ids[positions.cpu()] = picked.cpu()
            yield start + number, ids.tolist()
