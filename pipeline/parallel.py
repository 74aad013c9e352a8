"""BASH contexts at reading speed: guess the mixed answer, read many positions at once, correct.

With the replaced positions and the sampling noise given, the mixed answer is the only one for which
the model, reading it, puts at each replaced position the token that stands there. So the guess
begins as the reference, a window of it is read in one pass, and all is accepted up to and including
the first replaced position where the model's token is another; there it is corrected, and read on
from. Every accepted token is the one that decoding one position at a time gives.

A token's keys and values lie in the cache at the column of its position. What was read after a
token that turned out wrong is written over when it is read again, and attention may look at all
columns up to its own position: nothing is moved, and no column is marked. A finished row's slot
goes to the next waiting row.

Axis suffixes: B slots of the batch, L columns of the longest row, W columns of a pass, N tokens
picked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from pipeline import noise
from pipeline.contexts import without_adapter

# What a pass costs beside its tokens, in tokens; decides how wide a window pays.
_PASS_COST = {"cpu": 64}
_PASS_COST_ELSEWHERE = 4096
_PROBE_TOKENS = 8
# Slots without a row are given up when no more than this share of all has one.
_KEPT = 0.75

Pick = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class MixRow:
    """A row to mix.

    Attributes:
        prompt: prompt ids, at least one.
        reference: reference ids.
        row_id: what its noise is keyed by.
        replaced: bool [len(reference)], which positions the model fills; at least one.
    """

    prompt: list[int]
    reference: list[int]
    row_id: int
    replaced: torch.Tensor


@dataclass
class _Places:
    """Where the tokens of the coming pass belong, and how many columns it may look at."""

    columns_BW: torch.Tensor
    shown: int = 0


class _PlacedLayer(CacheLayerMixin):
    """One layer's keys and values, [B, heads, L + 1, size], each token's at its own column."""

    is_sliding = False

    def __init__(self, places: _Places, columns: int):
        super().__init__()
        self.places, self.columns = places, columns

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make room for all columns."""
        batch, heads = key_states.shape[:2]
        self.keys = key_states.new_zeros(batch, heads, self.columns, key_states.shape[-1])
        self.values = value_states.new_zeros(batch, heads, self.columns, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, heads, W, size] to the pass's columns; return all that it may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows_B1 = torch.arange(len(key_states), device=key_states.device)[:, None]
        self.keys[rows_B1, :, self.places.columns_BW] = key_states.transpose(1, 2)
        self.values[rows_B1, :, self.places.columns_BW] = value_states.transpose(1, 2)
        return self.keys[:, :, : self.places.shown], self.values[:, :, : self.places.shown]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns and offset of the mask."""
        return self.places.shown, 0

    def get_seq_length(self) -> int:
        """Nothing counts positions by it: they are given."""
        return 0

    def get_max_length(self) -> int:
        """All columns."""
        return self.columns


class _Reader:
    """Reads tokens at any columns of a batch, and gives logits where they are needed only."""

    def __init__(self, model: Any, slots: int, longest: int):
        inner = without_adapter(model)
        layers = inner.config.get_text_config().num_hidden_layers
        self.model, self.longest = model, longest
        self.places = _Places(torch.zeros(slots, 0, dtype=torch.long))
        # The last column takes what is read beyond a row's end.
        self.layers = [_PlacedLayer(self.places, longest + 1) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self._needed_BW: torch.Tensor | None = None
        self._hook = inner.get_output_embeddings().register_forward_pre_hook(self._select)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def read(
        self, ids_BW: torch.Tensor, columns_BW: torch.Tensor, inside_BW: torch.Tensor,
        needed_BW: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Read one pass; returns logits [N, V] of the needed places, row by row."""
        self.places.columns_BW = torch.where(inside_BW, columns_BW, self.longest)
        self.places.shown = int(torch.where(inside_BW, columns_BW, 0).max()) + 1
        seen = torch.arange(self.places.shown, device=ids_BW.device)
        hidden_BWL = seen > columns_BW[:, :, None]
        dtype = self.model.dtype
        mask = torch.zeros(hidden_BWL.shape, dtype=dtype, device=ids_BW.device)
        mask.masked_fill_(hidden_BWL, torch.finfo(dtype).min)
        self._needed_BW = needed_BW
        output = self.model(
            input_ids=ids_BW,
            attention_mask=mask[:, None],
            position_ids=columns_BW,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.logits[0, : int(needed_BW.sum())]

    def keep(self, slots: torch.Tensor) -> None:
        """Go on with some of the slots only."""
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[slots], layer.values[slots]

    def _select(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        """Spare the output layer all other places: [B, W, H] -> [1, N, H]."""
        assert self._needed_BW is not None
        picked = inputs[0][self._needed_BW]
        return ((picked if len(picked) else inputs[0][:1, 0])[None],)


class _Slots:
    """The rows being worked on, as tensors."""

    def __init__(self, rows: Sequence[MixRow], slots: int, longest: int, device: Any):
        self.rows, self.device = rows, device
        self.waiting = iter(range(len(rows)))
        self.held = [-1] * slots
        self.ids_BL = torch.zeros(slots, longest + 1, dtype=torch.long, device=device)
        self.replaced_BL = torch.zeros(slots, longest + 1, dtype=torch.bool, device=device)
        zeros = torch.zeros(4, slots, dtype=torch.long, device=device)
        # Columns read for good, columns to read, where the answer starts, and the row's id.
        self.read_B, self.end_B, self.answer_B, self.row_B = zeros
        for slot in range(slots):
            self.fill(slot)

    def fill(self, slot: int) -> None:
        """Give a slot to the next waiting row, if there is one."""
        self.held[slot] = next(self.waiting, -1)
        self.read_B[slot] = self.end_B[slot] = 0
        if self.held[slot] < 0:
            return
        row = self.rows[self.held[slot]]
        ids = torch.tensor(row.prompt + row.reference, device=self.device)
        self.ids_BL[slot, : len(ids)] = ids
        self.replaced_BL[slot] = False
        self.replaced_BL[slot, len(row.prompt) : len(ids)] = row.replaced.to(self.device)
        # Nothing has to be read that comes at or after the last token to fill.
        self.end_B[slot] = len(row.prompt) + int(row.replaced.nonzero().max())
        self.answer_B[slot], self.row_B[slot] = len(row.prompt), row.row_id

    def keep(self, slots: torch.Tensor) -> None:
        """Go on with some of the slots only."""
        self.held = [self.held[slot] for slot in slots.tolist()]
        for name in ("ids_BL", "replaced_BL", "read_B", "end_B", "answer_B", "row_B"):
            setattr(self, name, getattr(self, name)[slots])

    def finished(self) -> list[tuple[int, list[int]]]:
        """Take out rows that are read to their end: (place in rows, mixed answer)."""
        done = []
        for slot in (self.read_B >= self.end_B).nonzero().flatten().tolist():
            if self.held[slot] >= 0:
                row = self.rows[self.held[slot]]
                start, end = len(row.prompt), len(row.prompt) + len(row.reference)
                done.append((self.held[slot], self.ids_BL[slot, start:end].tolist()))
                self.fill(slot)
        return done


@torch.no_grad()
def mix_in_parallel(
    model: Any,
    rows: Sequence[MixRow],
    *,
    seed: int,
    pick: Pick,
    batch_size: int,
    report: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Mix rows, up to `batch_size` of them at a time.

    Args:
        model: a causal language model in evaluation mode that `can_read` is true of.
        rows: in the order in which they are worked on; long ones first keeps slots filled.
        seed: of the sampling noise.
        pick: scores [N, V] and noise keys [N] to token ids [N].
        batch_size: slots; it does not change the result.
        report: called with the number of rows done.

    Returns:
        The mixed answers, in the order of rows.
    """
    mixed: list[list[int]] = [[] for _ in rows]
    if not rows:
        return mixed
    longest = max(len(row.prompt) + len(row.reference) for row in rows)
    slots = _Slots(rows, min(batch_size, len(rows)), longest, model.device)
    corrected, read, done = 0, 0, 0
    with _Reader(model, len(slots.held), longest) as reader:
        while any(row >= 0 for row in slots.held):
            busy = [slot for slot, row in enumerate(slots.held) if row >= 0]
            if len(busy) <= _KEPT * len(slots.held):
                kept = torch.tensor(busy, device=model.device)
                slots.keep(kept)
                reader.keep(kept)
            left_B = slots.end_B - slots.read_B
            rate = (corrected + 1) / (read + 32)
            # No wider than rows have left on average: the rest would be read for nothing.
            average = math.ceil(int(left_B.sum()) / len(busy))
            width = min(_width(model.device.type, len(busy), rate), average)
            accepted, wrong = _pass(reader, slots, width, seed, pick)
            corrected, read = corrected + wrong, read + accepted
            for place, answer in slots.finished():
                mixed[place] = answer
                done += 1
                if report:
                    report(done)
    return mixed


def _width(device: str, rows: int, rate: float) -> int:
    """How many columns to read at once, where a token needs correcting at `rate`.

    A row gets on by (1 - (1 - rate)^w) / rate for w columns, about w - rate w^2 / 2; with a fixed
    cost c of a pass, progress by cost is largest where w^2 = 2 c / (rows rate).
    """
    cost = _PASS_COST.get(device, _PASS_COST_ELSEWHERE)
    return max(1, round(math.sqrt(2 * cost / (rows * rate))))


def _pass(reader: _Reader, slots: _Slots, width: int, seed: int, pick: Pick) -> tuple[int, int]:
    """Read a window of every row and correct its first wrong token.

    Returns:
        How many tokens were accepted, and how many corrected.
    """
    column_W = torch.arange(width, device=slots.device)
    at_BW = slots.read_B[:, None] + column_W
    inside_BW = at_BW < slots.end_B[:, None]
    at_BW = at_BW.clamp(max=reader.longest - 1)
    needed_BW = inside_BW & slots.replaced_BL.gather(1, at_BW + 1)
    logits_NV = reader.read(slots.ids_BL.gather(1, at_BW), at_BW, inside_BW, needed_BW)
    row_N, window_N = needed_BW.nonzero(as_tuple=True)
    next_N = at_BW[row_N, window_N] + 1
    key_N = noise.keys(
        seed, slots.row_B[row_N], next_N - slots.answer_B[row_N], stream=noise.SAMPLE
    )
    token_N = pick(logits_NV, key_N) if len(row_N) else row_N
    is_wrong_N = token_N != slots.ids_BL[row_N, next_N]
    first_B = torch.full_like(slots.read_B, width).scatter_reduce(
        0, row_N, torch.where(is_wrong_N, window_N, width), "amin"
    )
    fixed_N = is_wrong_N & (window_N == first_B[row_N])
    slots.ids_BL[row_N[fixed_N], next_N[fixed_N]] = token_N[fixed_N]
    accepted_B = torch.minimum((first_B + 1).clamp(max=width), inside_BW.sum(dim=1))
    slots.read_B += accepted_B
    return int(accepted_B.sum()), int(fixed_N.sum())


@torch.no_grad()
def can_read(model: Any, ids: Sequence[int]) -> bool:
    """Whether a model reads tokens at given columns as it reads them in a row.

    Tried on the first tokens of `ids`, the longest row: read in two passes, with columns and a mask
    of our own, they must have the logits that one plain pass gives them. Attention that slides over
    fewer tokens than a row has would need another mask.
    """
    window = getattr(without_adapter(model).config.get_text_config(), "sliding_window", None)
    if len(ids) < 2 or (window is not None and len(ids) > window):
        return len(ids) < 2
    ids_1W = torch.tensor([list(ids)[:_PROBE_TOKENS]], device=model.device)
    length = ids_1W.shape[1]
    try:
        plain = model(input_ids=ids_1W, use_cache=False).logits[0].float()
        found = []
        with _Reader(model, 1, length) as reader:
            for columns in torch.arange(length, device=model.device).chunk(2):
                here = torch.ones(1, len(columns), dtype=torch.bool, device=model.device)
                found.append(reader.read(ids_1W[:, columns], columns[None], here, here))
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, IndexError):
        return False
    ours = torch.cat(found).float()
    # 16-bit logits differ by rounding; another meaning of mask or columns differs by their size.
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    return ours.shape == plain.shape and bool(
        (ours - plain).abs().max() <= tolerance * plain.abs().max()
    )
