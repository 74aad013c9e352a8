"""Sampling a token with the Gumbel-max trick: argmax(logits + noise) is a sample from the softmax.

The noise is keyed by row and position (pipeline/decoding/noise.py), so a token does not depend on
which rows share its batch, or on how many positions were decoded in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

    def noisy(self, logits_NV: torch.Tensor, key_N: torch.Tensor) -> torch.Tensor:
        """Return scores, [N, V], whose argmax is a sample."""
        scores = without(logits_NV.float(), self.excluded_ids)
        scores = warp(scores / self.temperature, top_k=self.top_k, top_p=self.top_p)
        return scores + noise.gumbel(key_N, scores.shape[-1])

    def sample(self, logits_NV: torch.Tensor, key_N: torch.Tensor) -> torch.Tensor:
        """Return one sampled token id per row, [N].

        Raises:
            StepFailedError: if scores are NaN or infinite.
        """
        return greedy(self.noisy(logits_NV, key_N))


def without(scores_NV: torch.Tensor, excluded_ids: Sequence[int]) -> torch.Tensor:
    """Set the scores of some tokens to -inf, in place."""
    if excluded_ids:
        scores_NV[:, list(excluded_ids)] = float("-inf")
    return scores_NV


def greedy(
    scores_NV: torch.Tensor, key_N: torch.Tensor | None = None, excluded_ids: Sequence[int] = ()
) -> torch.Tensor:
    """Return the token with the largest score per row, [N]; no noise is drawn.

    Raises:
        StepFailedError: if scores are NaN or infinite.
    """
    del key_N
    token_N = without(scores_NV, excluded_ids).argmax(dim=-1)
    check_finite(scores_NV, token_N)
    return token_N


def check_finite(scores_NV: torch.Tensor, token_N: torch.Tensor) -> None:
    """Check that the winning scores, those of `token_N`, are finite: argmax picks a NaN if any.

    Without this check, a model that overflows in float16 would write arbitrary tokens.

    Raises:
        StepFailedError: if one is NaN or infinite.
    """
    if not bool(scores_NV.gather(1, token_N[:, None]).isfinite().all()):
        raise StepFailedError(f"the model's logits are NaN or infinite: {NOT_FINITE}")


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
