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

A GPU stands still while the host waits for its results and launches the next pass. So what a pass
needs to know (who is where) stays on the device, in a table, and its shape follows from what the
host knows anyway: how far each row had come when the host last read the table (a look), and that a
pass moves no row further than the window is wide. Several passes follow one another between looks.
A free answer may run a few tokens past its end meanwhile, which are cut off. On the device all
sizes are rounded up, so that passes have few shapes, each of which can be captured as a CUDA graph
(pipeline/decoding/graphs.py). Where waiting costs nothing, on a CPU, there is a look after every
pass and nothing is rounded (`Pace`).

Axis suffixes: as in pipeline/decoding/kv_cache.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from pipeline.decoding import noise
from pipeline.decoding.batching import Pace, pace_of, upload
from pipeline.decoding.graphs import Graphs
from pipeline.decoding.kv_cache import Needed, Reader
from pipeline.decoding.sampling import not_finite, winners

# The fixed cost of a pass (launching kernels), in tokens; decides how wide a window pays off.
_PASS_COST = {"cpu": 128}
_PASS_COST_ELSEWHERE = 4096
_WIDEST = 64
# Slots are refilled once this share of them is free, so that prompts are prefilled several at a
# time; when no row is waiting any more, free slots are dropped at the same point.
_FREE = 0.25
# Where sizes are rounded: the fewest columns that a pass attends to. A multiple of it is the most.
_COLUMNS = 128
# Where sizes are rounded, prompts are padded to a multiple of this.
_PROMPT_COLUMNS = 32

# Logits [N, V] and noise keys [N] to scores [N, V], of which the largest is chosen.
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Which rows end, judged by the last K tokens of each: [B, K] -> bool [B].
Stop = Callable[[torch.Tensor], torch.Tensor]
_TAIL = 16


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

    @property
    def end(self) -> int:
        """The column of the last position that the model fills.

        It is sampled from the logits of the token before it, so nothing is read from there on.
        """
        return len(self.prompt) + int(self.replaced.numpy().nonzero()[0][-1])


def free_row(prompt: list[int], row_id: int, limit: int) -> Row:
    """A row for a free answer of at most `limit` tokens."""
    return Row(prompt, [], row_id, torch.ones(limit, dtype=torch.bool))


class Shape(NamedTuple):
    """The shape of a decoding pass.

    Attributes:
        slots: rows of the batch.
        width: the columns of the window that a pass reads of each.
        sampled: the most positions of a window that are sampled; the window ends before the next.
        shown: columns attended to.
    """

    slots: int
    width: int
    sampled: int
    shown: int


# The numbers of a slot: columns read so far (which is the last column decided), the last column to
# decide, where the answer starts, the row's id, in how many passes the model disagreed with the
# guess, and the first column decided by a score that is not finite.
_READ, _END, _ANSWER, _ROW, _WRONG, _BAD = range(6)
_NEVER = 1 << 40


class _Slots:
    """The rows being decoded: a table on the device, and what the host remembers of it.

    A line of the table holds a slot's ids, a spare column that takes whatever is written for
    nothing, and the slot's numbers. The host's copies of numbers are those of the last look.
    """

    def __init__(self, rows: Sequence[Row], slots: int, columns: int, device: Any):
        self.rows, self.columns, self.device = rows, columns, device
        self.longest = max(row.longest for row in rows)
        self.waiting = iter(range(len(rows)))
        self.held = np.full(slots, -1)
        self.seen = np.zeros((slots, 6), dtype=np.int64)
        self.accepted, self.ended = 0, 0
        self.table = torch.zeros(slots, columns + 1 + 6, dtype=torch.long, device=device)
        self.replaced_BL = torch.zeros(slots, columns + 1, dtype=torch.bool, device=device)
        self._name_parts()
        # Shared by all prompts. A prompt's last token is never part of it: its logits give the
        # first token of the answer, so a decoding pass has to read it.
        self.prefix = _common_start([row.prompt[:-1] for row in rows])

    def _name_parts(self) -> None:
        """Views of the table; what is written into them is written into it."""
        self.ids_BL = self.table[:, : self.columns + 1]
        numbers = self.table[:, self.columns + 1 :].unbind(1)
        self.read_B, self.end_B, self.answer_B, self.row_B, self.wrong_B, self.bad_B = numbers

    def busy(self) -> np.ndarray:
        """The slots that hold a row."""
        return (self.held >= 0).nonzero()[0]

    def fill(self) -> list[int]:
        """Give free slots to waiting rows; returns the slots filled."""
        placed = dict(zip((self.held < 0).nonzero()[0].tolist(), self.waiting, strict=False))
        if not placed:
            return []
        filled, width = list(placed), self.columns + 1
        lines, replaced_RL = [], torch.zeros(len(filled), width, dtype=torch.bool)
        for number, (slot, place) in enumerate(placed.items()):
            row = self.rows[place]
            ids, start = row.prompt + row.ids, len(row.prompt)
            numbers = [start - 1, row.end, start, row.row_id, 0, _NEVER]
            lines.append(ids + [0] * (width - len(ids)) + numbers)
            replaced_RL[number, start : row.longest] = row.replaced
            self.held[slot], self.seen[slot] = place, numbers
        slots_R = upload(filled, self.device)
        self.table[slots_R] = upload(lines, self.device)
        self.replaced_BL[slots_R] = upload(replaced_RL, self.device)
        return filled

    def keep(self, slots: np.ndarray) -> torch.Tensor:
        """Drop all slots but these; returns them as a tensor."""
        kept = upload(slots, self.device)
        self.held, self.seen = self.held[slots], self.seen[slots]
        self.table, self.replaced_BL = self.table[kept], self.replaced_BL[kept]
        self._name_parts()
        return kept

    def left(self) -> np.ndarray:
        """How many columns each row has left."""
        seen = self.seen[self.busy()]
        return seen[:, _END] - seen[:, _READ]

    def reach(self, columns: int) -> int:
        """How many columns have been read once every row has read as many more."""
        seen = self.seen[self.busy()]
        return int(np.minimum(seen[:, _READ] + columns, seen[:, _END]).max())

    def look(self, stop: Stop | None) -> list[tuple[int, list[int]]]:
        """Read the table back, for which the host waits until the device has finished all passes.

        Returns:
            The rows that have ended, now removed from their slots: (index in rows, answer).

        Raises:
            StepFailedError: if scores of a row are NaN or infinite.
        """
        table, busy = self.table.cpu().numpy(), self.busy()
        ids, now = table[busy, : self.columns + 1], table[busy, self.columns + 1 :]
        ends = self._ends(ids, now, self.seen[busy], stop) if stop else now[:, _END]
        if (now[:, _BAD] <= ends).any():
            raise not_finite()
        progress = (now - self.seen[busy])[:, [_READ, _WRONG]].sum(0)
        over = now[:, _READ] >= ends
        self.accepted += int(progress[0])
        self.ended += int(progress[1] + over.sum())
        self.seen[busy] = now
        done = []
        for number in over.nonzero()[0]:
            place = int(self.held[busy[number]])
            answer = ids[number, now[number, _ANSWER] : ends[number] + 1].tolist()
            done.append((place, answer + self.rows[place].ids[len(answer) :]))
        self.held[busy[over]] = -1
        if done:  # nothing more is read of them
            self.end_B.index_fill_(0, upload(busy[over], self.device), 0)
        return done

    @staticmethod
    def _ends(ids: np.ndarray, now: np.ndarray, seen: np.ndarray, stop: Stop) -> np.ndarray:
        """Where rows end: at the first new token that ends one, or completes a stop text."""
        new = int((now - seen)[:, _READ].max())
        at = seen[:, _READ, None] + 1 + np.arange(new)
        tail = (at[:, :, None] + np.arange(1 - _TAIL, 1)).clip(0, ids.shape[1] - 1)
        tails = np.take_along_axis(ids, tail.reshape(len(ids), -1), 1).reshape(-1, _TAIL)
        ended = stop(torch.from_numpy(tails)).numpy().reshape(at.shape)
        ended &= at <= now[:, _READ, None]
        return np.where(ended, at, now[:, _END, None]).min(axis=1)


@torch.no_grad()
def decode(
    model: Any,
    rows: Sequence[Row],
    *,
    seed: int,
    score: Score,
    batch_size: int,
    stop: Stop | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Decode rows, `batch_size` at a time, and yield each as it finishes (unordered).

    Args:
        model: a causal language model in evaluation mode that
            `pipeline.decoding.probe.can_read`.
        rows: started in this order; long rows first keeps slots busy to the end.
        seed: of the sampling noise.
        score: what a token is chosen by, given logits and noise keys.
        batch_size: slots; it does not change the result.
        stop: for free answers, which rows end with their last tokens (on the CPU).

    Returns:
        Pairs of a row's index in `rows` and its answer, the token that ended a free one included.

    Raises:
        StepFailedError: if scores are NaN or infinite.
    """
    if not rows:
        return
    pace, longest = pace_of(model.device), max(row.longest for row in rows)
    columns = -(-longest // _COLUMNS) * _COLUMNS if pace.few_shapes else longest
    slots = _Slots(rows, min(batch_size, len(rows)), columns, model.device)
    # How many of the positions of an answer the model fills.
    share = sum(int(row.replaced.sum()) for row in rows) / sum(len(row.replaced) for row in rows)
    with Reader(model, len(slots.held), columns) as reader:
        graphs, count = Graphs(model.device), len(slots.held)
        _prefill_shared_prefix(reader, slots)
        while _fill(reader, slots, pace):
            if len(slots.held) < count:  # what was captured is of other tensors
                graphs, count = Graphs(model.device), len(slots.held)
            # Prior for how often the model disagrees with the guess: 1 token in 32.
            rate = 1 if stop else (1 + slots.ended) / (32 + slots.accepted)
            shape, passes = _plan(slots, pace, rate, share)
            one_pass = partial(_pass, reader, slots, shape, pace, seed, score)
            for _ in range(passes):
                graphs.run(shape, one_pass)
            yield from slots.look(stop)


def _plan(slots: _Slots, pace: Pace, rate: float, share: float) -> tuple[Shape, int]:
    """The shape of the passes until the next look, and how many they are."""
    count, left = len(slots.held), slots.left()
    most = int(left.max())
    width = _width(slots.device.type, count, rate, most=most, few=pace.few_shapes)
    # Rows that have ended wait for the next look, so it comes when enough are likely to have.
    likely = np.quantile(left, _FREE) / _progress(width, rate)
    passes = min(pace.passes, max(math.ceil(likely), 1))
    shown = pace.round_up(slots.reach(width * passes), least=_COLUMNS, most=slots.columns)
    return Shape(count, width, sampled_of_window(width, share), shown), passes


def sampled_of_window(width: int, share: float) -> int:
    """The most positions of a window that are sampled, where its shape is fixed.

    Half as many again as there are on average, so that few windows have more and end early.
    """
    return min(width, int(1.5 * share * width) + 1)


def _fill(reader: Reader, slots: _Slots, pace: Pace) -> bool:
    """Refill free slots and prefill their prompts; false when no row is left."""
    busy, count = slots.busy(), len(slots.held)
    if count - len(busy) >= max(1, round(_FREE * count)):
        if filled := slots.fill():
            _prefill(reader, slots, filled, pace)
            return True
        kept = pace.round_up(len(busy)) if len(busy) else count
        if kept < count:
            free = (slots.held < 0).nonzero()[0]
            reader.keep(slots.keep(np.concatenate([busy, free])[:kept]))
    return len(busy) > 0


def _prefill_shared_prefix(reader: Reader, slots: _Slots) -> None:
    """Prefill the prefix shared by all prompts, once for all slots."""
    if slots.prefix:
        length = len(slots.prefix)
        ids_1W = upload([slots.prefix], slots.device)
        columns_1W = torch.arange(length, device=slots.device)[None]
        inside_1W = torch.ones_like(ids_1W, dtype=torch.bool)
        first = torch.zeros(1, dtype=torch.long, device=slots.device)
        reader.read(ids_1W, columns_1W, inside_1W, length, None, first)
        reader.share(length)


def _prefill(reader: Reader, slots: _Slots, filled: list[int], pace: Pace) -> None:
    """Prefill the prompts of new rows, all but the last token, which the first decoding pass reads.

    Prompts of similar length share a pass, as many as fit.
    """
    prefix = len(slots.prefix)
    length = {slot: len(slots.rows[slots.held[slot]].prompt) - 1 for slot in filled}
    waiting = sorted(filled, key=lambda slot: -length[slot])
    while waiting:
        widest = length[waiting[0]] - prefix
        if pace.few_shapes:
            widest = min(-(-widest // _PROMPT_COLUMNS) * _PROMPT_COLUMNS, slots.columns - prefix)
        group = waiting[: max(1, pace.tokens // max(widest, 1))]
        waiting = waiting[len(group) :]
        if widest:
            slots_R = upload(group, slots.device)
            columns_W = torch.arange(prefix, prefix + widest, device=slots.device)
            columns_W = columns_W.clamp(max=slots.longest - 1)
            columns_RW = columns_W.expand(len(group), -1)
            inside_RW = columns_RW < slots.answer_B[slots_R, None]
            ids_RW = slots.ids_BL[slots_R, prefix : prefix + widest]
            reader.read(ids_RW, columns_RW, inside_RW, prefix + widest, None, slots_R)


def _width(device: str, rows: int, rate: float, *, most: int, few: bool = False) -> int:
    """The window width with the best expected progress for its cost; `few`: a power of two.

    A pass costs rows * width tokens plus a constant.
    """
    cost = _PASS_COST.get(device, _PASS_COST_ELSEWHERE)
    widths: Sequence[int] = range(1, min(_WIDEST, max(1, most)) + 1)
    if few:
        widths = [1 << power for power in range(_WIDEST.bit_length())]
    return max(widths, key=lambda width: _progress(width, rate) / (cost + rows * width))


def _progress(width: int, rate: float) -> float:
    """How far a window gets on average, if each token disagrees with probability `rate`."""
    return (1 - (1 - rate) ** width) / rate


def _common_start(prompts: list[list[int]]) -> list[int]:
    """The longest common prefix of all prompts."""
    low, high = min(prompts), max(prompts)  # all others sort between these two
    shorter = min(len(low), len(high))
    return low[: next((at for at in range(shorter) if low[at] != high[at]), shorter)]


def _pass(reader: Reader, slots: _Slots, shape: Shape, pace: Pace, seed: int, score: Score) -> None:
    """One Jacobi iteration: read a window of every row, resample its replaced positions, accept."""
    column_W = torch.arange(shape.width, device=slots.device)
    at_BW = slots.read_B[:, None] + column_W
    inside_BW = at_BW < slots.end_B[:, None]
    # What is beyond the end of a row is padding, but may have no place beyond the model's window.
    at_BW = at_BW.clamp(max=slots.longest - 1)
    needed_BW = inside_BW & slots.replaced_BL.gather(1, at_BW + 1)
    if pace.few_shapes:
        inside_BW &= needed_BW.cumsum(dim=1) <= shape.sampled
        needed_BW &= inside_BW
    row_N, window_N = _needed(needed_BW, shape, pace)
    logits_NV = reader.read(
        slots.ids_BL.gather(1, at_BW), at_BW, inside_BW, shape.shown, (row_N, window_N)
    )
    valid_N = needed_BW[row_N, window_N]
    next_N = torch.where(valid_N, at_BW[row_N, window_N] + 1, slots.columns)  # or the spare column
    key_N = noise.keys(
        seed, slots.row_B[row_N], next_N - slots.answer_B[row_N], stream=noise.SAMPLE
    )
    token_N, finite_N = winners(score(logits_NV, key_N))
    wrong_N = valid_N & (token_N != slots.ids_BL[row_N, next_N])
    # The first disagreement of each row, or the width. Everything up to and including the token
    # replaced there is final; what was sampled after it was conditioned on a wrong token.
    first_B = torch.full_like(slots.read_B, shape.width).scatter_reduce(
        0, row_N, torch.where(wrong_N, window_N, shape.width), "amin"
    )
    slots.ids_BL[row_N, next_N] = token_N
    bad_N = torch.where(valid_N & ~finite_N, next_N, _NEVER)
    slots.bad_B.scatter_reduce_(0, row_N, bad_N, "amin")
    slots.wrong_B += first_B < shape.width
    slots.read_B += torch.minimum((first_B + 1).clamp(max=shape.width), inside_BW.sum(dim=1))


def _needed(needed_BW: torch.Tensor, shape: Shape, pace: Pace) -> Needed:
    """Row and column of the window of each position to sample, [N].

    Where sizes are rounded, `shape.sampled` of every row, the last of them for nothing where a row
    needs fewer.
    """
    if not pace.few_shapes:
        return needed_BW.nonzero(as_tuple=True)
    rows_BK = torch.arange(shape.slots, device=needed_BW.device)[:, None].expand(-1, shape.sampled)
    # Sorting by "not needed", in order otherwise, puts what is needed first.
    order_BW = (~needed_BW).byte().argsort(dim=1, stable=True)
    return rows_BK.flatten(), order_BW[:, : shape.sampled].flatten()
