"""The curve of benchmarks/speed.py: contexts by reading many positions at a time, over beta.

The same rows by both engines, `sequential` (one position a pass, with a cache, rows ordered by
length) and `parallel`, at each batch size, of which the fastest counts. Beside them stands what
reading the same tokens once in plain passes takes, below which no exact engine can come.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.decoding.batching import pad_right, tokens_of_a_pass
from pipeline.rows.contexts import mix_contexts


def curve(
    model: Any,
    prompts: list[list[int]],
    references: list[list[int]],
    excluded: list[int],
    *,
    betas: Sequence[float],
    batch_sizes: Sequence[int],
) -> list[dict[str, Any]]:
    """Both engines at each beta.

    Returns:
        Lines with the best seconds of each, their ratio, the share of tokens that differ between
        them (rounding of 16-bit passes of other shapes), and of those that the model changed.
    """
    options = {"seed": 0, "row_ids": range(len(prompts)), "excluded_ids": excluded}

    def measure(beta: float, engine: str, size: int) -> tuple[float, list[list[int]]]:
        start = now(model)
        found = mix_contexts(
            model, prompts, references, beta=beta, engine=engine, batch_size=size, **options
        )
        return now(model) - start, found

    mix_contexts(model, prompts[:4], references[:4], beta=0.2, seed=0, row_ids=range(4))  # warm up
    lines = []
    for beta in betas:
        plain = read_seconds(model, prompts, references)
        best = {}
        for engine in ("sequential", "parallel"):
            timed = {size: measure(beta, engine, size) for size in batch_sizes}
            best[engine] = min(timed.items(), key=lambda item: item[1][0])
        (one_size, (one, sequential)), (other_size, (other, parallel)) = best.values()
        lines.append(
            {
                "beta": beta,
                "reading s": round(plain, 2),
                "sequential s": round(one, 2),
                "at batch": one_size,
                "parallel s": round(other, 2),
                "at batch ": other_size,
                "sequential / parallel": round(one / other, 2),
                "tokens that differ": round(differing(sequential, parallel), 4),
                "tokens changed": round(differing(parallel, references), 4),
            }
        )
    return lines


@torch.no_grad()
def read_seconds(model: Any, prompts: list[list[int]], references: list[list[int]]) -> float:
    """Seconds of reading all rows once, in passes of the size that is best on the device."""
    rows = sorted((x + y for x, y in zip(prompts, references, strict=True)), key=len)
    limit = tokens_of_a_pass(model.device)
    start = now(model)
    while rows:
        count = max(limit // len(rows[-1]), 1)
        batch, rows = rows[-count:], rows[:-count]
        mask = pad_right([[1] * len(row) for row in batch], model.device)
        ids = pad_right(batch, model.device)
        model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
    return now(model) - start


def differing(left: list[list[int]], right: list[list[int]]) -> float:
    """The share of tokens that differ between two sets of rows of the same lengths."""
    pairs = [(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a != b for a, b in pairs) / len(pairs)


def now(model: Any) -> float:
    """Seconds, once an accelerator has finished."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
