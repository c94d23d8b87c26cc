"""The key-value cache: a transformers `Cache` with fixed slots, in which every row has its own positions.

There are two stores. A long prompt is stored once and read by all rows that share it
(`distill.engines.groups`). Each row stores its own tokens: from the last token of a shared prompt on, or
from the first token of a short one. So rows can enter and leave while others continue, and eight samples
of a long prompt read it once per step.

Padding adds exact zeros: masked scores are minus infinity, so their weights are 0.0, and 0.0 times the
finite number in an unused position is 0.0. A row's result therefore does not depend on how long the other
rows are. Read by `distill.engines.attention`, driven by `distill.engines.decode`.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from distill.engines.groups import Layout, granules
from distill.tensors import put

NOWHERE = 2**30
"""The position of absent tokens: later than all others, so that every mask hides them."""

CURRENT: ContextVar[SlotCache] = ContextVar("CURRENT")
"""The cache of this thread's current forward pass; transformers does not pass it to the attention function."""

Pair = tuple[Tensor, Tensor]


class KeyValues:
    """Per layer, keys and values of shape (slots, key-value heads, capacity, head size). Grows on request."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.slots = self.capacity = 0
        self._dtype, self._device = dtype, device
        self._layers: dict[int, Pair] = {}

    def layer(self, index: int, like: Tensor) -> Pair:
        if index not in self._layers:
            self._layers[index] = (self._new(like), self._new(like))
        return self._layers[index]

    def wish(self, slots: int, capacity: int) -> None:
        """Request so many slots and positions; `grow` allocates them."""
        self.slots, self.capacity = max(slots, self.slots), max(capacity, self.capacity)

    def grow(self) -> None:
        """Allocate what was requested, keeping the contents."""
        for index, (keys, values) in self._layers.items():
            if keys.shape[0] < self.slots or keys.shape[2] < self.capacity:
                self._layers[index] = (self._grown(keys), self._grown(values))

    def copy(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copy the first ``length`` positions of slots onto other slots."""
        if sources:
            from_, to = put(sources, self._device), put(targets, self._device)
            for tensor in (t for pair in self._layers.values() for t in pair):
                tensor[to, :, :length] = tensor[from_, :, :length]

    def empty(self) -> None:
        """Free everything."""
        self.slots = self.capacity = 0
        self._layers.clear()

    def _new(self, like: Tensor) -> Tensor:
        # Zeros, not empty: a masked position must hold a finite number. Untouched pages cost nothing.
        shape = (self.slots, like.shape[1], self.capacity, like.shape[3])
        return torch.zeros(shape, dtype=self._dtype, device=self._device)

    def _grown(self, old: Tensor) -> Tensor:
        new = self._new(old)
        new[: old.shape[0], :, : old.shape[2]] = old
        return new


class SlotCache(Cache):
    """`fill` or `step` sets what the next forward pass writes and reads."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        self.prompts, self.rows = KeyValues(dtype, device), KeyValues(dtype, device)
        self._device = device
        self.layout: Layout | None = None
        self.shared: Pair | None = None
        """Keys and values of the shared prompts, in the layer updated last; None if the pass reads none."""
        self.seen = torch.zeros(0, dtype=torch.long)
        """The positions of the keys, to be broadcast to (R, 1, T, L)."""
        self.positions = torch.zeros(0, 0, dtype=torch.long)
        """The positions (R, T) of the new tokens."""
        self._filling: KeyValues | None = None
        self._handed: Tensor | None = None
        self._slots: slice | Tensor = slice(0)
        self._piece = range(0)
        self._length = 0
        self._own = torch.zeros(0, dtype=torch.long)
        self._written: dict[int, Tensor] = {}

    def empty(self) -> None:
        """Free the memory. The next pass must be a `fill`, or a step of rows without earlier tokens."""
        self.prompts.empty()
        self.rows.empty()
        self.layout = self.shared = self._filling = self._handed = None
        self._length = 0

    def fill(self, store: KeyValues, slots: list[int], piece: range) -> None:
        """The next pass computes the positions ``piece`` of the prompts in these slots; earlier ones are there."""
        CURRENT.set(self)
        self._filling, self.layout, self.shared = store, None, None
        self._slots, self._piece = _contiguous(slots) or put(slots, self._device), piece
        self._length = granules(piece.stop)
        self.positions = torch.arange(piece.start, piece.stop, device=self._device).expand(len(slots), -1)
        self.seen = torch.arange(self._length, device=self._device)

    def step(self, layout: Layout | None, start: Tensor, position: Tensor, length: int) -> None:
        """The next pass computes one token per row, at ``position`` (R,); a row's own tokens begin at ``start`` (R,).

        The longest row has ``length`` tokens of its own, including the new one. Without a ``layout``, no row
        shares a prompt and all start at 0.
        """
        CURRENT.set(self)
        length = min(granules(length), self.rows.capacity)
        if self._filling or layout is not self.layout or length != self._length:
            self._filling, self.layout, self._length, self.shared = None, layout, length, None
            self.seen = torch.arange(length, device=self._device)
            if layout is not None:
                ordinals = torch.arange(layout.length, device=self._device)
                prompt = torch.where(ordinals < start[:, None], ordinals, NOWHERE)
                self.seen = torch.cat([prompt, start[:, None] + self.seen], 1)[:, None, None]
        self.positions, self._own = position[:, None], position - start
        self._written.clear()

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values (R, kv heads, T, head size); returns those to attend to, shared prompts aside."""
        if self._filling:
            pair = self._fill(key_states, value_states, self._filling.layer(layer_idx, key_states))
        else:
            if self.layout is not None:
                keys, values = self.prompts.layer(layer_idx, key_states)
                prompts, read = slice(self.layout.prompts), slice(self.layout.length)
                self.shared = (keys[prompts, :, read], values[prompts, :, read])
            pair = self._append(key_states, value_states, self.rows.layer(layer_idx, key_states))
        self._handed = pair[0]
        return pair

    def is_handed(self, keys: Tensor) -> bool:
        """Whether these are the keys that `update` returned last."""
        return keys is self._handed

    def _fill(self, key_states: Tensor, value_states: Tensor, store: Pair) -> Pair:
        for target, new in zip(store, (key_states, value_states), strict=True):
            target[self._slots, :, self._piece.start : self._piece.stop] = new
        return store[0][:, :, : self._length][self._slots], store[1][:, :, : self._length][self._slots]

    def _append(self, key_states: Tensor, value_states: Tensor, store: Pair) -> Pair:
        rows, heads, _, size = key_states.shape
        if heads not in self._written:
            slots = torch.arange(rows * heads, device=self._device) * self.rows.capacity
            self._written[heads] = slots + self._own.repeat_interleave(heads)
        for target, new in zip(store, (key_states, value_states), strict=True):
            target.view(-1, size).index_copy_(0, self._written[heads], new.reshape(-1, size))
        return store[0][:rows, :, : self._length], store[1][:rows, :, : self._length]

    def get_query_offset(self, layer_idx: int = 0) -> Tensor:  # type: ignore[override]
        return self.positions[:, 0]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.seen.shape[-1], 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen.shape[-1] - self.positions.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.prompts.capacity + self.rows.capacity


def _contiguous(slots: list[int]) -> slice | None:
    """Adjacent slots as a slice, which is read without a copy; else None."""
    whole = slice(slots[0], slots[0] + len(slots))
    return whole if slots == list(range(whole.start, whole.stop)) else None
