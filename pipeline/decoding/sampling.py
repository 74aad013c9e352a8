"""Sampling a token with the Gumbel-max trick: argmax(logits + noise) is a sample from the softmax.

The noise is keyed by row and position (pipeline/decoding/noise.py), so a token does not depend on
which rows share its batch, or on how many positions were decoded in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.decoding import noise
from pipeline.errors import StepFailedError
from pipeline.hardware.precision import NOT_FINITE


@dataclass(frozen=True)
class Sampling:
    """How a token is sampled."""

    seed: int
    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    excluded_ids: tuple[int, ...] = ()
    _excluded_on: dict[Any, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)

    def noisy(self, logits_NV: torch.Tensor, key_N: torch.Tensor) -> torch.Tensor:
        """Return scores, [N, V], whose argmax is a sample."""
        device = logits_NV.device
        if device not in self._excluded_on:  # once: for a new tensor the host waits for a GPU
            excluded = torch.tensor(self.excluded_ids, dtype=torch.long, device=device)
            self._excluded_on[device] = excluded
        scores = without(logits_NV.float(), self._excluded_on[device])
        scores = warp(scores / self.temperature, top_k=self.top_k, top_p=self.top_p)
        return scores + noise.gumbel(key_N, scores.shape[-1])

    def sample(self, logits_NV: torch.Tensor, key_N: torch.Tensor) -> torch.Tensor:
        """Return one sampled token id per row, [N].

        Raises:
            StepFailedError: if scores are NaN or infinite.
        """
        return greedy(self.noisy(logits_NV, key_N))


def without(scores_NV: torch.Tensor, excluded_K: torch.Tensor) -> torch.Tensor:
    """Set the scores of some tokens to -inf, in place."""
    return scores_NV.index_fill_(1, excluded_K, float("-inf"))


def winners(scores_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token with the largest score per row, [N], and whether that score is finite, [N].

    argmax picks a NaN if there is any. Without the second a model that overflows in float16 would
    go on writing some arbitrary token.
    """
    token_N = scores_NV.argmax(dim=-1)
    return token_N, scores_NV.gather(1, token_N[:, None])[:, 0].isfinite()


def greedy(scores_NV: torch.Tensor) -> torch.Tensor:
    """Return the token with the largest score per row, [N].

    Raises:
        StepFailedError: if scores are NaN or infinite.
    """
    token_N, finite_N = winners(scores_NV)
    if not bool(finite_N.all()):
        raise not_finite()
    return token_N


def not_finite() -> StepFailedError:
    """The error for scores that are NaN or infinite."""
    return StepFailedError(f"the model's logits are NaN or infinite: {NOT_FINITE}")


def warp(scores_NV: torch.Tensor, *, top_k: int, top_p: float) -> torch.Tensor:
    """Set scores outside the top k (0: all) or the top-p nucleus to -inf. [N, V] -> [N, V]."""
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    unused: Any = None  # input ids, which these two warpers do not read
    if top_k:
        scores_NV = TopKLogitsWarper(top_k)(unused, scores_NV)
    return TopPLogitsWarper(top_p)(unused, scores_NV) if top_p < 1 else scores_NV


def default_excluded_ids(model: Any) -> tuple[int, ...]:
    """The end, beginning and padding ids of a model's generation config."""
    config = model.generation_config
    found: set[int] = set()
    for value in (config.eos_token_id, config.bos_token_id, config.pad_token_id):
        found.update(value if isinstance(value, (list, tuple)) else [value])
    return tuple(sorted(token_id for token_id in found if token_id is not None))
