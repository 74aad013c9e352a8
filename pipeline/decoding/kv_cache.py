"""A slot-indexed, preallocated KV cache, and a reader that decodes rows at different positions.

The cache is one tensor a layer, [slots, heads, columns, size]. A row occupies a slot, and its token
at position p always lives in column p, so that

- rows of one batch can be at different positions, and a pass can read several tokens of each;
- rejected tokens (Jacobi decoding guesses ahead) need no rollback: their columns are overwritten
  when they are read again, and until then no token attends beyond its own column;
- a finished row's slot can be given to the next row at once. Stale keys and values of the previous
  row are overwritten by the new one before it attends to their columns.

There is no padding in the cache and nothing in it is ever moved. The price is that we pass our own
4D attention mask, so `can_read` (pipeline/decoding/probe.py) tests whether a model honours it.

No shape here depends on values on the device, so nothing makes the host wait for it.

Axis suffixes: B slots of the batch, R of them that a pass reads, W columns of a pass, L columns
that a pass attends to, N tokens whose logits are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from pipeline.decoding.batching import without_adapter

Needed = tuple[torch.Tensor, ...]  # rows [N] and columns [N]


@dataclass
class _Places:
    """Where the coming pass writes, and how many columns it attends to."""

    columns_RW: torch.Tensor
    slots_R: torch.Tensor
    shown: int = 0
    all_slots: bool = True  # whether slots_R is all of them, in order


class _PlacedLayer(CacheLayerMixin):
    """One layer's keys and values, [B, heads, columns, size]; see the module docstring."""

    is_sliding = False

    def __init__(self, places: _Places, slots: int, columns: int):
        super().__init__()
        self.places, self.slots, self.columns = places, slots, columns

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate all columns of all slots."""
        self.keys, self.values = (
            states.new_zeros(self.slots, states.shape[1], self.columns, states.shape[-1])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [R, heads, W, size] into the pass's columns; return the columns attended to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        slots_R, shown = self.places.slots_R, self.places.shown
        self.keys[slots_R[:, None], :, self.places.columns_RW] = key_states.transpose(1, 2)
        self.values[slots_R[:, None], :, self.places.columns_RW] = value_states.transpose(1, 2)
        keys, values = self.keys[:, :, :shown], self.values[:, :, :shown]
        return (keys, values) if self.places.all_slots else (keys[slots_R], values[slots_R])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns and offset of the mask."""
        return self.places.shown, 0

    def get_seq_length(self) -> int:
        """Unused: position ids are always passed explicitly."""
        return 0

    def get_max_length(self) -> int:
        """The number of columns."""
        return self.columns


class Reader:
    """Runs a model over tokens at arbitrary columns, and computes logits only where needed.

    Use as a context manager: a hook on the output layer is removed at its end.

    Args:
        model: a causal language model in evaluation mode that passes `can_read`.
        slots: rows of the batch.
        columns: columns of a row.
    """

    def __init__(self, model: Any, slots: int, columns: int):
        inner = without_adapter(model)
        layers = inner.config.get_text_config().num_hidden_layers
        self.model, self.columns = model, columns
        self._every_B = torch.arange(slots, device=model.device)
        self._places = _Places(self._every_B[:, None], self._every_B)
        # One spare column at the end, to which no token attends, takes the padding of a pass.
        self._layers = [_PlacedLayer(self._places, slots, columns + 1) for _ in range(layers)]
        self._cache = Cache(layers=list(self._layers))
        self._needed_N: Needed | None = None
        self._hook = inner.get_output_embeddings().register_forward_pre_hook(self._select)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def read(
        self, ids_RW: torch.Tensor, columns_RW: torch.Tensor, inside_RW: torch.Tensor, shown: int,
        needed_N: Needed | None = None, slots_R: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Run one forward pass.

        Args:
            ids_RW: token ids.
            columns_RW: the column each belongs to.
            inside_RW: which of them are tokens; the others are padding.
            shown: how many columns are attended to, at least up to the last one that holds a token.
            needed_N: the tokens whose logits are needed, as indices [N] of row and column of the
                pass; None for none of them.
            slots_R: the slots they belong to; None for all slots.

        Returns:
            Logits [N, V].
        """
        places = self._places
        places.all_slots = slots_R is None
        places.slots_R = self._every_B if slots_R is None else slots_R
        places.columns_RW = torch.where(inside_RW, columns_RW, self.columns)
        places.shown = shown
        seen_L = torch.arange(shown, device=ids_RW.device)
        hidden_RWL = seen_L > columns_RW[:, :, None]
        mask = torch.zeros(hidden_RWL.shape, dtype=self.model.dtype, device=ids_RW.device)
        mask.masked_fill_(hidden_RWL, torch.finfo(mask.dtype).min)
        self._needed_N = needed_N
        output = self.model(
            input_ids=ids_RW,
            attention_mask=mask[:, None],
            position_ids=columns_RW,
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.logits[0, : 0 if needed_N is None else len(needed_N[0])]

    def share(self, columns: int) -> None:
        """Copy the first columns of slot 0, a prefix that all prompts share, to all slots."""
        for layer in self._layers:
            assert layer.keys is not None and layer.values is not None
            layer.keys[1:, :, :columns] = layer.keys[:1, :, :columns]
            layer.values[1:, :, :columns] = layer.values[:1, :, :columns]

    def keep(self, slots: torch.Tensor) -> None:
        """Drop all slots but these, so that later passes are smaller."""
        self._every_B = self._every_B[: len(slots)]
        for layer in self._layers:
            layer.slots = len(slots)
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[slots], layer.values[slots]

    def _select(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        """Pass only the needed hidden states to the output layer: [R, W, H] -> [1, N, H].

        With a vocabulary of 150,000 the logits of a whole pass would take more memory than the
        cache, and more time than the layers below.
        """
        if self._needed_N is None or not len(self._needed_N[0]):
            return (inputs[0][:1, :1],)  # something has to come out
        return (inputs[0][self._needed_N][None],)
