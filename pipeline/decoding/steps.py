"""Reading a batch of rows token by token, in the way that its model can be read."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.decoding.batching import logits_to_keep, without_adapter

# The names by which models give a cache, and take it again.
_CACHES = ("past_key_values", "cache_params", "state")


@dataclass(frozen=True)
class Steps:
    """How a model may be read token by token; what is right for it, `steps_of` finds out.

    Attributes:
        together: whether rows may share a batch, the shorter ones padded on the left.
        cached: whether a cache may stand for what was read before.
        masked: whether passes that go on from a cache take a mask too, or (Mamba) only the first.
    """

    together: bool
    cached: bool = True
    masked: bool = True


def read_on(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, past: dict[str, Any], steps: Steps
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Read tokens after those read before, rows padded on the left.

    Args:
        model: a causal language model.
        ids: the new token ids, [B, W].
        mask: of all tokens so far, the new ones included, [B, T].
        past: what the pass before gave; empty at the start.
        steps: how the model may be read.

    Returns:
        The logits of each row's last token, [B, V], and the cache to go on from, under the name
        that the model takes it by; empty where the model keeps none.
    """
    known = inspect.signature(type(without_adapter(model)).forward).parameters
    more: dict[str, Any] = {}
    if "position_ids" in known:
        more["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if steps.masked or not past:
        more["attention_mask"] = mask
    output = model(
        input_ids=ids, **more, **past, use_cache=steps.cached, **logits_to_keep(model, 1)
    )
    found = {name: getattr(output, name, None) for name in _CACHES if steps.cached}
    return output.logits[:, -1], {name: kept for name, kept in found.items() if kept is not None}
