"""Reading tokens at columns of one's own choosing, so that nothing in the cache is ever moved.

A token's keys and values lie in the cache at the column of its position in the row. What was read
after a token that turned out wrong is written over when it is read again, and attention may look at
all columns up to a token's own: no column is marked, and a slot is free for another row at once.

Axis suffixes: B slots of the batch, R of them that a pass reads, W columns of a pass, L columns
that a pass may look at, N tokens whose logits are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from pipeline.decoding.batching import without_adapter

_PROBE_TOKENS = 8


@dataclass
class _Places:
    """Where the tokens of the coming pass belong, and how many columns it may look at."""

    columns_RW: torch.Tensor
    slots_R: torch.Tensor | None = None  # None: all
    shown: int = 0


class _PlacedLayer(CacheLayerMixin):
    """One layer's keys and values, [B, heads, columns, size], each token's at its own column."""

    is_sliding = False

    def __init__(self, places: _Places, slots: int, columns: int):
        super().__init__()
        self.places, self.slots, self.columns = places, slots, columns

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make room for all columns."""
        self.keys, self.values = (
            states.new_zeros(self.slots, states.shape[1], self.columns, states.shape[-1])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [R, heads, W, size] to the pass's columns; return all that it may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        slots_R, shown = self.places.slots_R, self.places.shown
        every = torch.arange(self.slots, device=key_states.device) if slots_R is None else slots_R
        self.keys[every[:, None], :, self.places.columns_RW] = key_states.transpose(1, 2)
        self.values[every[:, None], :, self.places.columns_RW] = value_states.transpose(1, 2)
        keys, values = self.keys[:, :, :shown], self.values[:, :, :shown]
        return (keys, values) if slots_R is None else (keys[slots_R], values[slots_R])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns and offset of the mask."""
        return self.places.shown, 0

    def get_seq_length(self) -> int:
        """Nothing counts positions by it: they are given."""
        return 0

    def get_max_length(self) -> int:
        """All columns."""
        return self.columns


class Reader:
    """Reads tokens at any columns of a batch, and gives logits where they are needed only.

    Use as a context manager.

    Args:
        model: a causal language model in evaluation mode that `can_read` is true of.
        slots: rows of the batch.
        longest: columns of a row.
    """

    def __init__(self, model: Any, slots: int, longest: int):
        inner = without_adapter(model)
        layers = inner.config.get_text_config().num_hidden_layers
        self.model, self.longest = model, longest
        self._places = _Places(torch.zeros(slots, 0, dtype=torch.long))
        # The last column takes what is read beyond a row's end.
        self._layers = [_PlacedLayer(self._places, slots, longest + 1) for _ in range(layers)]
        self._cache = Cache(layers=list(self._layers))
        self._needed_RW: torch.Tensor | None = None
        self._hook = inner.get_output_embeddings().register_forward_pre_hook(self._select)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def read(
        self, ids_RW: torch.Tensor, columns_RW: torch.Tensor, inside_RW: torch.Tensor,
        needed_RW: torch.Tensor, slots_R: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Read one pass.

        Args:
            ids_RW: token ids.
            columns_RW: the column each belongs to.
            inside_RW: which of them are there; the others are padding.
            needed_RW: which of them need logits.
            slots_R: the slots they belong to; None for all.

        Returns:
            Logits [N, V] of the needed places, row by row.
        """
        places = self._places
        places.slots_R = slots_R
        places.columns_RW = torch.where(inside_RW, columns_RW, self.longest)
        places.shown = int(torch.where(inside_RW, columns_RW, 0).max()) + 1
        seen_L = torch.arange(places.shown, device=ids_RW.device)
        hidden_RWL = seen_L > columns_RW[:, :, None]
        mask = torch.zeros(hidden_RWL.shape, dtype=self.model.dtype, device=ids_RW.device)
        mask.masked_fill_(hidden_RWL, torch.finfo(mask.dtype).min)
        self._needed_RW = needed_RW
        output = self.model(
            input_ids=ids_RW,
            attention_mask=mask[:, None],
            position_ids=columns_RW,
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.logits[0, : int(needed_RW.sum())]

    def share(self, columns: int) -> None:
        """Give all slots what the first one holds in its first columns."""
        for layer in self._layers:
            assert layer.keys is not None and layer.values is not None
            layer.keys[1:, :, :columns] = layer.keys[:1, :, :columns]
            layer.values[1:, :, :columns] = layer.values[:1, :, :columns]

    def keep(self, slots: torch.Tensor) -> None:
        """Go on with some of the slots only."""
        for layer in self._layers:
            layer.slots = len(slots)
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[slots], layer.values[slots]

    def _select(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        """Spare the output layer all other places: [R, W, H] -> [1, N, H]."""
        assert self._needed_RW is not None
        picked = inputs[0][self._needed_RW]
        return ((picked if len(picked) else inputs[0][:1, 0])[None],)


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
        with Reader(model, 1, length) as reader:
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
