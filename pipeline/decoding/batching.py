"""Batching for forward passes: padding, the pace of a device, and restoring the order of rows."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch


def without_adapter(model: Any) -> Any:
    """The transformers model itself, unwrapped from its PeftModel if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def logits_to_keep(model: Any, count: int) -> dict[str, int]:
    """The argument that computes logits for the last positions only, if the model takes one."""
    known = inspect.signature(type(without_adapter(model)).forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in known else {}


def rope_limit(model: Any) -> int:
    """The length above which RoPE of every row in a batch depends on the longest row.

    LongRoPE switches to its long factors once any row exceeds the original window, and dynamic NTK
    scales with the longest row. Rows above the limit are run alone, so that no result depends on
    the batch. Other models have no such limit.
    """
    config = without_adapter(model).config.get_text_config()
    found = getattr(config, "rope_parameters", None) or {}
    per_layer = [found, *(rope for rope in found.values() if isinstance(rope, dict))]
    dynamic = [rope for rope in per_layer if rope.get("rope_type") in ("longrope", "dynamic")]
    window = getattr(config, "max_position_embeddings", None)
    limits = [
        rope.get("original_max_position_embeddings") if rope["rope_type"] == "longrope" else window
        for rope in dynamic
    ]
    return min((limit for limit in limits if limit is not None), default=sys.maxsize)


def forget_length(model: Any) -> None:
    """Reset dynamic NTK, which would otherwise rotate later rows as for the longest one so far."""
    model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)


@dataclass(frozen=True)
class Pace:
    """What passes should be like on a device. It decides speed, not results.

    Attributes:
        tokens: how many a pass should hold.
        passes: how many decoding passes follow one another before the host reads back what they
            wrote. A GPU that has to wait for the host after each pass stands still meanwhile.
        few_shapes: whether sizes are rounded up, so that passes are of few shapes and none depends
            on values. A CUDA graph holds a pass of one shape.
    """

    tokens: int
    passes: int
    few_shapes: bool

    def round_up(self, count: int, *, least: int = 1, most: int = sys.maxsize) -> int:
        """A power of two from `least` to `most`, or the count itself where shapes may differ."""
        if not self.few_shapes:
            return count
        return min(max(1 << (count - 1).bit_length(), least), most)


# On a CPU a pass of more tokens would not fit in its cache, and waiting costs nothing.
_PACES = {"cpu": Pace(tokens=1024, passes=1, few_shapes=False)}
_PACE_ELSEWHERE = Pace(tokens=16384, passes=8, few_shapes=True)


def pace_of(device: Any) -> Pace:
    """The pace of a device."""
    return _PACES.get(device.type, _PACE_ELSEWHERE)


def upload(values: Any, device: Any) -> torch.Tensor:
    """Numbers as a tensor on a device. From pinned memory a GPU fetches them as it gets to it."""
    there = torch.as_tensor(values)
    if device.type == "cuda":
        there = there.pin_memory()
    return there.to(device=device, non_blocking=True)


def tokens_of_a_pass(device: Any) -> int:
    """How many tokens a pass should hold."""
    return pace_of(device).tokens


def pad_left(rows: list[list[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask, int64 [B, longest], padded with 0 on the left."""
    longest = max(len(row) for row in rows)
    ids = [[0] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def pad_right(rows: list[list[int]], device: Any) -> torch.Tensor:
    """Return ids, int64 [B, longest], padded with 0 on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)


def in_order(done: Iterable[tuple[int, list[int]]], count: int) -> list[list[int]]:
    """Put (index, ids) pairs that come in any order into a list; missing ones are []."""
    found = dict(done)
    return [found.get(place, []) for place in range(count)]
