"""RAC labels: the token the model, given the reference, predicts at each point of its answer.

c_t = argmax (or a sample) of pi(. | r(x, y), yhat_<t)     (Cen et al. 2025)

where r(x, y) is the reference-conditioned prompt and yhat the self-generated answer. One
teacher-forced pass over r(x, y) + yhat gives every c_t, including the one at yhat's last position.

Decisions where the paper is silent:
1. `label="argmax"`, or `"sample"` at temperature 1 with noise that depends only on (seed, row id,
   position).
2. `min_confidence`: labels with a lower probability under the reference-conditioned model are
   dropped (-100), since this method collapses through labels far from the generated tokens.
Decisions about whole rows are in pipeline/stages/rac.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.decoding import noise
from pipeline.decoding.batching import (
    forget_length,
    in_order,
    pad_right,
    rope_limit,
    tokens_of_a_pass,
    without_adapter,
)
from pipeline.decoding.sampling import Sampling, greedy, without

# The most logits computed at once, and the most copied to float32 at once: with a vocabulary of
# 150,000 the logits of one long batch would not fit in memory.
_LOGITS = 1 << 26
_COPIED_LOGITS = 1 << 23


@dataclass(frozen=True)
class Own:
    """A row to label: reference-conditioned prompt, self-generated answer, key of the noise."""

    shown: list[int]
    answer: list[int]
    row_id: int


def correct(
    model: Any,
    prompt_ids: Sequence[Sequence[int]],
    shown_ids: Sequence[Sequence[int]],
    answer_ids: Sequence[Sequence[int]],
    *,
    label: str = "argmax",
    min_confidence: float = 0.0,
    seed: int = 0,
    row_ids: Sequence[int] | None = None,
    batch_size: int = 8,
    excluded_ids: Sequence[int] = (),
) -> list[list[int]]:
    """Label self-generated answers token by token.

    Args:
        model: a causal language model (or PeftModel) of transformers.
        prompt_ids: the plain prompts used when training on the labels. Labels do not depend on
            them; we only check that there is one per row.
        shown_ids: the reference-conditioned prompts.
        answer_ids: the self-generated answers, including the end-of-turn token if there is one.
        label: 'argmax' or 'sample'.
        min_confidence: labels with a lower probability become -100.
        seed: together with row id and position determines samples.
        row_ids: one number per row, the same in every batch; by default its index.
        batch_size: most rows per forward pass; it does not change the result.
        excluded_ids: tokens that never become labels, as if their probability were 0.

    Returns:
        One list of label ids per row, as long as its answer.

    Raises:
        ValueError: for lists of different lengths, an empty prompt, or an option out of range.
    """
    row_ids = range(len(answer_ids)) if row_ids is None else row_ids
    _check_arguments(prompt_ids, shown_ids, answer_ids, row_ids, label, min_confidence)
    rows = [
        Own(list(shown), list(answer), row_id)
        for shown, answer, row_id in zip(shown_ids, answer_ids, row_ids, strict=True)
    ]
    done = iter_labels(
        model,
        rows,
        label=label,
        min_confidence=min_confidence,
        seed=seed,
        batch_size=batch_size,
        excluded_ids=excluded_ids,
    )
    return in_order(done, len(rows))


@torch.no_grad()
def iter_labels(
    model: Any,
    rows: Sequence[Own],
    *,
    label: str,
    min_confidence: float,
    seed: int,
    batch_size: int,
    excluded_ids: Sequence[int] = (),
) -> Iterator[tuple[int, list[int]]]:
    """Yield (index in rows, labels) as rows finish (unordered); see `correct`."""
    was_training = model.training
    model.eval()
    excluded = torch.tensor(excluded_ids, dtype=torch.long, device=model.device)
    try:
        for batch in batches(model, rows, batch_size):
            chunks = [
                _label(
                    [rows[place].row_id for place in batch],
                    first,
                    without(logits_BCV.flatten(0, 1), excluded).view(logits_BCV.shape),
                    label,
                    min_confidence,
                    seed,
                )
                for first, logits_BCV in logits_at_answers(model, [rows[p] for p in batch])
            ]
            for place, ids in zip(batch, torch.cat(chunks, dim=1).tolist(), strict=True):
                yield place, ids[: len(rows[place].answer)]
    finally:
        model.train(was_training)


def _check_arguments(prompt_ids, shown_ids, answer_ids, row_ids, label, min_confidence):
    counts = [len(rows) for rows in (prompt_ids, shown_ids, answer_ids, row_ids)]
    if len(set(counts)) > 1:
        raise ValueError(
            "{} prompts, {} shown prompts, {} answers, {} row ids: each row needs one of "
            "each".format(*counts)
        )
    if any(len(ids) == 0 for rows in (prompt_ids, shown_ids) for ids in rows):
        raise ValueError("a prompt is empty: the first answer token needs a token before it")
    if label not in ("argmax", "sample"):
        raise ValueError(f"label is {label!r}, expected 'argmax' or 'sample'")
    if not 0 <= min_confidence < 1:
        raise ValueError(f"min_confidence is {min_confidence}, expected 0 or more and below 1")


def batches(model: Any, rows: Sequence[Own], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices of rows with an answer, longest first.

    A batch has at most `tokens_of_a_pass`; rows longer than `rope_limit` get a batch to themselves.
    """
    lengths = [(len(row.shown), len(row.answer)) for row in rows]  # rows may have to be read
    order = sorted(range(len(rows)), key=lambda place: -lengths[place][1])
    order = [place for place in order if lengths[place][1]]
    sizes = [shown + answer for shown, answer in lengths]
    limit, tokens = rope_limit(model), tokens_of_a_pass(model.device)
    for place in list(order):
        if sizes[place] > limit:
            order.remove(place)
            yield [place]
            forget_length(model)  # by now the caller has run this batch
    while order:
        # The order is by answer length, so any row of the batch may be the longest.
        longest = max(sizes[place] for place in order[:batch_size])
        size = max(min(batch_size, tokens // longest), 1)
        yield order[:size]
        order = order[size:]


def logits_at_answers(model: Any, rows: list[Own]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (c, logits [B, C, V]) for answer positions c..c+C of all rows, in chunks.

    Rows are padded on the right, where causal attention does not see it. The layers below the
    output layer run once. The output layer runs only on the hidden states of answers, in chunks of
    positions if their logits would exceed `_LOGITS`.
    """
    whole = [row.shown + row.answer for row in rows]
    ids_BL = pad_right(whole, model.device)
    mask_BL = pad_right([[1] * len(ids) for ids in whole], model.device)
    count = max(len(row.answer) for row in rows)
    # The logits at a position predict the next token, so those of a token are one position before.
    first_B1 = torch.tensor([[len(row.shown) - 1] for row in rows], device=model.device)
    at_BT = first_B1 + torch.arange(count, device=model.device)
    # Beyond a shorter answer the logits mean nothing: callers ignore them.
    at_BT1 = at_BT.clamp(max=ids_BL.shape[1] - 1)[:, :, None]
    vocabulary = model.config.get_text_config().vocab_size
    chunk = max(_LOGITS // (len(rows) * vocabulary), 1)
    head, hidden_BTH, first = without_adapter(model).get_output_embeddings(), None, 0

    def pick(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        """Pass a chunk of the answers' hidden states, kept from the first pass, to the head."""
        nonlocal hidden_BTH
        if hidden_BTH is None:
            hidden_BTH = inputs[0].gather(1, at_BT1.expand(-1, -1, inputs[0].shape[-1]))
        return (hidden_BTH[:, first : first + chunk],)

    for first in range(0, count, chunk):
        # Models may also cap or scale logits in their forward method, so every chunk goes through
        # it; for later chunks the layers below get a single token, which costs almost nothing.
        width = ids_BL.shape[1] if hidden_BTH is None else 1
        hook = head.register_forward_pre_hook(pick)
        try:
            logits_BCV = model(
                input_ids=ids_BL[:, :width], attention_mask=mask_BL[:, :width], use_cache=False
            ).logits
        finally:
            hook.remove()
        yield first, logits_BCV


def _label(
    row_ids: list[int], first: int, logits_BCV: torch.Tensor, label: str, min_confidence: float,
    seed: int,
) -> torch.Tensor:  # fmt: skip
    """Labels [B, C] of the chunk of answer positions that starts at `first`."""
    logits_NV = logits_BCV.flatten(0, 1)
    if label == "argmax":
        label_N = greedy(logits_NV)
    else:
        positions = torch.arange(first, first + logits_BCV.shape[1])
        # Keyed by position in the answer, so that chunks and batches do not change a sample.
        key_BC = noise.keys(seed, torch.tensor(row_ids)[:, None], positions, stream=noise.LABEL)
        sampling = Sampling(seed, temperature=1.0)
        key_N = key_BC.flatten().to(logits_NV.device)
        parts = zip(_parts(logits_NV), _parts(key_N, logits_NV), strict=True)
        label_N = torch.cat([sampling.sample(part, key) for part, key in parts])
    if min_confidence > 0:
        label_N[log_probabilities(logits_NV, label_N).exp() < min_confidence] = -100
    return label_N.view(logits_BCV.shape[:2])


def log_probabilities(logits_NV: torch.Tensor, label_N: torch.Tensor) -> torch.Tensor:
    """Log-probability of each label, float32 [N]."""
    parts = zip(_parts(logits_NV), _parts(label_N, logits_NV), strict=True)
    return torch.cat(
        [
            part.float().log_softmax(dim=-1).gather(1, labels[:, None])[:, 0]
            for part, labels in parts
        ]
    )


def _parts(values: torch.Tensor, logits_NV: torch.Tensor | None = None) -> Sequence[torch.Tensor]:
    """Split along N so that a float32 copy of a part stays small."""
    vocabulary = (values if logits_NV is None else logits_NV).shape[-1]
    return values.split(max(_COPIED_LOGITS // vocabulary, 1))
