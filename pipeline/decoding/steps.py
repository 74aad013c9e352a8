"""Decoding a batch token by token, with or without padding and KV cache as the model allows."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.decoding.batching import logits_to_keep, without_adapter

# Names under which models return a cache and accept it again.
_CACHES = ("past_key_values", "cache_params", "state")


@dataclass(frozen=True)
class Steps:
    """How a model may be decoded token by token; `steps_of` finds out which way is correct.

    Attributes:
        together: whether rows may share a batch, padded on the left.
        cached: whether a cache may replace the earlier tokens.
        masked: whether passes with a cache take an attention mask, or (Mamba) only the first pass.
    """

    together: bool
    cached: bool = True
    masked: bool = True


def read_on(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, past: dict[str, Any], steps: Steps
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Run one pass over new tokens, with left-padded rows.

    Args:
        model: a causal language model.
        ids: the new token ids, [B, W].
        mask: attention mask of all tokens so far, including the new ones, [B, T].
        past: the cache that the previous pass returned; empty at the start.
        steps: how the model may be decoded.

    Returns:
        The logits of each row's last token, [B, V], and the cache for the next pass, under the
        model's argument name; empty if the model has none.
    """
    known = inspect.signature(type(without_adapter(model)).forward).parameters
    more: dict[str, Any] = {}
    if "position_ids" in known:  # a row's padding does not count: its first token has position 0
        more["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if steps.masked or not past:
        more["attention_mask"] = mask
    output = model(
        input_ids=ids, **more, **past, use_cache=steps.cached, **logits_to_keep(model, 1)
    )
    found = {name: getattr(output, name, None) for name in _CACHES if steps.cached}
    return output.logits[:, -1], {name: kept for name, kept in found.items() if kept is not None}
