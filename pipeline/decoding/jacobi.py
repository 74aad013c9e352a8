"""Jacobi decoding with continuous batching: BASH contexts and free answers, many rows at a time.

BASH contexts. Which positions are replaced and the sampling noise at each are fixed beforehand, so
the mixed answer is a fixed point: the one sequence for which the model, conditioned on it, samples
at each replaced position exactly the token already there. Jacobi iteration finds it. The first
guess is the reference. A pass reads a window of the guess. Everything up to and including the first
replaced position where the model disagrees is accepted; there, and at later replaced positions of
the window, the model's tokens become the new guess; and the next window starts after the accepted
tokens. An accepted token was sampled given accepted tokens only, so it is the token that decoding
one position at a time gives. Most positions keep the reference, so a pass accepts many.

Free answers are the special case in which every position is sampled: there is no guess to accept,
so a pass decodes one token per row, and a stopping rule ends rows.

In both cases a prefix shared by all prompts is prefilled once, prompts are prefilled in passes of
their own, and a finished row's slot goes to the next waiting row (continuous batching).

Axis suffixes: as in pipeline/decoding/kv_cache.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.decoding import noise
from pipeline.decoding.batching import tokens_of_a_pass
from pipeline.decoding.kv_cache import Reader

# The fixed cost of a pass (launching kernels), in tokens; decides how wide a window pays off.
_PASS_COST = {"cpu": 128}
_PASS_COST_ELSEWHERE = 4096
_WIDEST = 64
# Slots are refilled once this share of them is free, so that prompts are prefilled several at a
# time; when no row is waiting any more, free slots are dropped at the same point.
_FREE = 0.25

SampleToken = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Which rows end, judged by the last K tokens of each: [B, K] -> bool [B].
Stop = Callable[[torch.Tensor], torch.Tensor]
_TAIL = 16  # K; a stop text must lie within so many tokens


@dataclass(frozen=True)
class Reference:
    """A row to mix: prompt ids, reference ids, and the key of its noise."""

    prompt: list[int]
    ids: list[int]
    row_id: int


@dataclass(frozen=True)
class Row(Reference):
    """A row, with the positions of its answer that the model fills (at least one): bool [T].

    `ids` is the guess for the answer: the reference, or nothing for a free answer.
    """

    replaced: torch.Tensor

    @property
    def longest(self) -> int:
        """The most tokens that prompt and answer can have together."""
        return len(self.prompt) + len(self.replaced)


def free_row(prompt: list[int], row_id: int, limit: int) -> Row:
    """A row for a free answer of at most `limit` tokens."""
    return Row(prompt, [], row_id, torch.ones(limit, dtype=torch.bool))


class _Slots:
    """The rows being decoded, as tensors over slots."""

    def __init__(self, rows: Sequence[Row], slots: int, longest: int, device: Any):
        self.rows, self.device = rows, device
        self.waiting = iter(range(len(rows)))
        self.held = [-1] * slots  # per slot the index of its row, -1 if it is free
        # One column more than the longest row: `_pass` also looks at the column after each one that
        # it reads.
        self.ids_BL = torch.zeros(slots, longest + 1, dtype=torch.long, device=device)
        self.replaced_BL = torch.zeros(slots, longest + 1, dtype=torch.bool, device=device)
        zeros = torch.zeros(4, slots, dtype=torch.long, device=device)
        # Per slot: columns accepted so far, the last column to read, where the answer starts, and
        # the row's id.
        self.read_B, self.end_B, self.answer_B, self.row_B = zeros
        # Shared by all prompts. A prompt's last token is never part of it: its logits give the
        # first token of the answer, so a decoding pass has to read it.
        self.prefix = _common_start([row.prompt[:-1] for row in rows])

    def busy(self) -> list[int]:
        """The slots in use."""
        return [slot for slot, row in enumerate(self.held) if row >= 0]

    def fill(self) -> list[int]:
        """Give free slots to waiting rows; returns the slots filled."""
        filled = []
        for slot, held in enumerate(self.held):
            place = next(self.waiting, -1) if held < 0 else -1
            if place >= 0:
                self.held[slot] = place
                self._place(slot, self.rows[place])
                filled.append(slot)
        return filled

    def _place(self, slot: int, row: Row) -> None:
        ids, start = torch.tensor(row.prompt + row.ids, device=self.device), len(row.prompt)
        self.ids_BL[slot, : len(ids)] = ids
        self.replaced_BL[slot] = False
        self.replaced_BL[slot, start : row.longest] = row.replaced.to(self.device)
        # The last position to fill is sampled from the logits of the token before it; nothing needs
        # to be read from there on.
        self.end_B[slot] = start + int(row.replaced.nonzero().max())
        self.read_B[slot], self.answer_B[slot] = len(self.prefix), start
        self.row_B[slot] = row.row_id

    def keep(self, slots: torch.Tensor) -> None:
        """Drop all slots but these."""
        self.held = [self.held[slot] for slot in slots.tolist()]
        for name in ("ids_BL", "replaced_BL", "read_B", "end_B", "answer_B", "row_B"):
            setattr(self, name, getattr(self, name)[slots])

    def stop(self, stop: Stop) -> None:
        """End the rows whose last accepted token is an end token, or completes a stop text."""
        last_B1 = self.read_B[:, None]
        tail = torch.arange(1 - _TAIL, 1, device=self.device)
        ends_B = stop(self.ids_BL.gather(1, (last_B1 + tail).clamp(min=0)))
        self.end_B = torch.where(ends_B & (self.read_B >= self.answer_B), self.read_B, self.end_B)

    def finished(self) -> list[tuple[int, list[int]]]:
        """Remove finished rows from their slots and return (index in rows, answer) for each."""
        done = []
        for slot in (self.read_B >= self.end_B).nonzero().flatten().tolist():
            place = self.held[slot]
            if place >= 0:
                # The token after the last column read has been sampled too, but need not be read.
                start, decided = int(self.answer_B[slot]), int(self.end_B[slot]) + 1
                answer = self.ids_BL[slot, start:decided].tolist()
                # What follows the last replaced position is the reference, as it was given.
                done.append((place, answer + self.rows[place].ids[len(answer) :]))
                self.held[slot] = -1
                # A free slot still takes part in passes; with nothing left to read it is padding.
                self.read_B[slot] = self.end_B[slot] = 0
        return done


@torch.no_grad()
def decode(
    model: Any,
    rows: Sequence[Row],
    *,
    seed: int,
    sample_token: SampleToken,
    batch_size: int,
    stop: Stop | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Decode rows, `batch_size` at a time, and yield each as it finishes (unordered).

    Args:
        model: a causal language model in evaluation mode that
            `pipeline.decoding.probe.can_read`.
        rows: started in this order; long rows first keeps slots busy to the end.
        seed: of the sampling noise.
        sample_token: scores [N, V] and noise keys [N] to token ids [N].
        batch_size: slots; it does not change the result.
        stop: for free answers, which rows end with their last tokens.

    Returns:
        Pairs of a row's index in `rows` and its answer, the token that ended a free one included.
    """
    if not rows:
        return
    longest = max(row.longest for row in rows)
    slots = _Slots(rows, min(batch_size, len(rows)), longest, model.device)
    ended, read = 1, 32  # prior for how often the model disagrees with the guess: 1 token in 32
    with Reader(model, len(slots.held), longest) as reader:
        _prefill_shared_prefix(reader, slots)
        while _fill(reader, slots):
            left = int((slots.end_B - slots.read_B).max())
            # Free answers have no guess, so a window wider than one token never pays off.
            rate = 1 if stop else ended / read
            width = _width(slots.device.type, len(slots.held), rate, most=left)
            accepted, wrong = _pass(reader, slots, width, seed, sample_token)
            if stop:
                slots.stop(stop)
            finished = slots.finished()
            # The end of a row cuts a window short as a disagreement does, so it counts as one.
            ended, read = ended + wrong + len(finished), read + accepted
            yield from finished


def _fill(reader: Reader, slots: _Slots) -> bool:
    """Refill free slots and prefill their prompts; false when no row is left."""
    busy, count = slots.busy(), len(slots.held)
    if count - len(busy) >= max(1, round(_FREE * count)):
        filled = slots.fill()
        if filled:
            _prefill(reader, slots, filled)
            busy = slots.busy()
        elif busy:  # no row is waiting: make the remaining passes smaller
            kept = torch.tensor(busy, device=slots.device)
            slots.keep(kept)
            reader.keep(kept)
    return bool(busy)


def _prefill_shared_prefix(reader: Reader, slots: _Slots) -> None:
    """Prefill the prefix shared by all prompts, once for all slots."""
    if slots.prefix:
        ids_1W = torch.tensor([slots.prefix], device=slots.device)
        columns_1W = torch.arange(len(slots.prefix), device=slots.device)[None]
        inside_1W = torch.ones_like(ids_1W, dtype=torch.bool)
        first = torch.tensor([0], device=slots.device)
        no_logits_1W = ~inside_1W
        reader.read(ids_1W, columns_1W, inside_1W, no_logits_1W, first)
        reader.share(len(slots.prefix))


def _prefill(reader: Reader, slots: _Slots, filled: list[int]) -> None:
    """Prefill the prompts of new rows, all but the last token, which the first decoding pass reads.

    Prompts of similar length share a pass, as many as fit `tokens_of_a_pass`.
    """
    prefix = len(slots.prefix)
    limit = tokens_of_a_pass(slots.device)
    length = {slot: len(slots.rows[slots.held[slot]].prompt) - 1 for slot in filled}
    waiting = sorted(filled, key=lambda slot: -length[slot])
    while waiting:
        widest = length[waiting[0]] - prefix
        group = waiting[: max(1, limit // max(widest, 1))]
        waiting = waiting[len(group) :]
        if widest:
            slots_R = torch.tensor(group, device=slots.device)
            columns_W = torch.arange(prefix, length[group[0]], device=slots.device)
            columns_RW = columns_W.expand(len(group), -1)
            # In the rows of shorter prompts, the columns beyond the prompt are padding.
            inside_RW = columns_RW < slots.answer_B[slots_R, None]
            no_logits_RW = torch.zeros_like(inside_RW)
            ids_RW = slots.ids_BL[slots_R, prefix : length[group[0]]]
            reader.read(ids_RW, columns_RW, inside_RW, no_logits_RW, slots_R)
        slots.read_B[group] = slots.answer_B[group] - 1


def _width(device: str, rows: int, rate: float, *, most: int) -> int:
    """The window width with the best expected progress for its cost.

    If each token disagrees with probability `rate`, a window of w columns advances a row by
    (1 - (1 - rate)^w) / rate tokens on average; a pass costs rows * w tokens plus a constant.
    """
    cost = _PASS_COST.get(device, _PASS_COST_ELSEWHERE)
    widths = range(1, min(_WIDEST, max(1, most)) + 1)
    return max(widths, key=lambda width: (1 - (1 - rate) ** width) / (cost + rows * width))


def _common_start(prompts: list[list[int]]) -> list[int]:
    """The longest common prefix of all prompts."""
    low, high = min(prompts), max(prompts)  # all others sort between these two
    shorter = min(len(low), len(high))
    return low[: next((at for at in range(shorter) if low[at] != high[at]), shorter)]


def _pass(
    reader: Reader, slots: _Slots, width: int, seed: int, sample_token: SampleToken
) -> tuple[int, int]:
    """One Jacobi iteration: read a window of every row, resample its replaced positions, accept.

    Returns:
        How many tokens were accepted, and in how many rows the model disagreed with the guess.
    """
    column_W = torch.arange(width, device=slots.device)
    at_BW = slots.read_B[:, None] + column_W
    inside_BW = at_BW < slots.end_B[:, None]
    # The window may reach beyond a row's end. That part is padding, and only needs valid indices.
    at_BW = at_BW.clamp(max=reader.longest - 1)
    # Logits at a column predict the token of the next one.
    needed_BW = inside_BW & slots.replaced_BL.gather(1, at_BW + 1)
    logits_NV = reader.read(slots.ids_BL.gather(1, at_BW), at_BW, inside_BW, needed_BW)
    row_N, window_N = needed_BW.nonzero(as_tuple=True)
    next_N = at_BW[row_N, window_N] + 1
    key_N = noise.keys(
        seed, slots.row_B[row_N], next_N - slots.answer_B[row_N], stream=noise.SAMPLE
    )
    token_N = sample_token(logits_NV, key_N) if len(row_N) else row_N
    wrong_N = token_N != slots.ids_BL[row_N, next_N]
    # The first disagreement of each row, or the width. Everything up to and including the token
    # replaced there is final; what was sampled after it was conditioned on a wrong token.
    first_B = torch.full_like(slots.read_B, width).scatter_reduce(
        0, row_N, torch.where(wrong_N, window_N, width), "amin"
    )
    # All samples are stored: those after the first disagreement are guesses, which later passes
    # read and, with the same noise, sample again.
    slots.ids_BL[row_N, next_N] = token_N
    accepted_B = torch.minimum((first_B + 1).clamp(max=width), inside_BW.sum(dim=1))
    slots.read_B += accepted_B
    return int(accepted_B.sum()), int((first_B < width).sum())
