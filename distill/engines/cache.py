"""Keys and values in fixed slots, and the attention that reads them, as transformers plugs them in.

`SlotCache` is a transformers `Cache`: a row of the batch is a slot that lives at its own position, so
rows enter and leave while others go on. The attention function folds the query heads of a group into
the query axis, so keys and values are never repeated; the mask function asks transformers' own mask
rules with a position per row, so sliding windows keep working. A model whose attention goes through
`AttentionInterface` needs nothing else; recurrent layers are refused.

Padding adds exact zeros: masked scores are minus infinity, their weights 0.0, and whatever finite
number an unused position holds is multiplied by that. So what a row computes does not depend on how
far the others have come. Used by `distill.engines.decode` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicCache, LinearAttentionCacheLayerMixin

from pipeline.errors import InputError

NAME = "distill_slots"
GRANULE = 32
"""Key-value lengths are multiples of this many positions."""


def granules(length: int) -> int:
    """``length`` rounded up to a whole number of granules, at least one."""
    return max(1, -(-length // GRANULE)) * GRANULE


class SlotCache(Cache):
    """Per layer, keys and values of shape (slots, kv heads, capacity, head size).

    `at` says which rows and positions the next forward pass writes; what lies beyond a row's position
    is masked, never cleared.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers=[])
        self.slots = self.capacity = 0
        self._dtype, self._device = dtype, device
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self._read: slice | Tensor = slice(0)
        self._rows = self._positions = torch.zeros(0, 0, dtype=torch.long)
        self._length = 0

    def at(self, rows: slice | Tensor, positions: Tensor, length: int) -> None:
        """The next pass writes ``rows`` at ``positions`` (R, T) and reads ``length`` positions of them.

        Rows given as a slice from 0 are read in place, others (R,) are gathered.
        """
        ordinals = torch.arange(len(positions), device=self._device) if isinstance(rows, slice) else rows
        self._read, self._rows, self._positions = rows, ordinals[:, None], positions
        self._length = granules(length)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the new (R, kv heads, T, head size), return all that may be attended to."""
        if layer_idx not in self._stores:
            self._stores[layer_idx] = (self._store(key_states), self._store(value_states))
        keys, values = self._stores[layer_idx]
        keys[self._rows, :, self._positions] = key_states.transpose(1, 2)
        values[self._rows, :, self._positions] = value_states.transpose(1, 2)
        return keys[:, :, : self._length][self._read], values[:, :, : self._length][self._read]

    def copy(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copy the first ``length`` positions of slots onto other slots."""
        from_, to = torch.tensor(sources, device=self._device), torch.tensor(targets, device=self._device)
        for store in (s for pair in self._stores.values() for s in pair):
            store[to, :, :length] = store[from_, :, :length]

    def reserve(self, slots: int, capacity: int) -> None:
        """Make room for so many slots and positions, keeping what is there."""
        if slots > self.slots or capacity > self.capacity:
            self.slots, self.capacity = max(slots, self.slots), max(capacity, self.capacity)
            for layer, (keys, values) in self._stores.items():
                self._stores[layer] = (self._store(keys, keep=True), self._store(values, keep=True))

    def get_query_offset(self, layer_idx: int = 0) -> Tensor:  # type: ignore[override]
        """Where each row's first new token stands: (R,). transformers hands it on to the mask function."""
        return self._positions[:, 0]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._length, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length - self._positions.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.capacity

    def _store(self, like: Tensor, keep: bool = False) -> Tensor:
        # Zeros and not empty: a masked position must hold a finite number. Untouched pages cost nothing.
        shape = (self.slots, like.shape[1], self.capacity, like.shape[3])
        store = torch.zeros(shape, dtype=self._dtype, device=self._device)
        if keep:
            store[: like.shape[0], :, : like.shape[2]] = like
        return store


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of ``query`` (R, heads, T, size) over ``key``, ``value`` (R, kv heads, L, size).

    The heads of one group become ``heads // kv heads * T`` queries of their shared key-value head.
    """
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise InputError(f"{type(module).__name__}: attention sinks and position biases are not supported")
    rows, heads, length, size = query.shape
    scaling = size**-0.5 if scaling is None else scaling
    folded = (query * scaling).reshape(rows * key.shape[1], -1, size)
    scores = torch.bmm(folded, key.flatten(0, 1).transpose(1, 2))
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    scores.view(rows, heads, length, -1).add_(attention_mask)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    mixed = torch.bmm(weights, value.flatten(0, 1)).view(rows, heads, length, -1)
    return mixed.transpose(1, 2).contiguous(), None


def visible(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Tensor,
    mask_function: Callable[..., Tensor],
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> Tensor:
    """An additive mask (R, 1, T, L), from transformers' rule asked with each row's own positions."""
    ordinals = torch.arange(max(q_length, kv_length), device=q_offset.device)
    queries = (q_offset[:, None] + ordinals[:q_length])[:, None, :, None]
    rows = torch.arange(batch_size, device=q_offset.device)[:, None, None, None]
    seen = mask_function(rows, ordinals[0], queries, ordinals[:kv_length])
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def plug_in(model: Any) -> None:
    """Make ``model`` (a private copy: its configuration changes) attend through slots."""
    layers = DynamicCache(config=model.config.get_text_config()).layers
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        raise InputError(f"{type(model).__name__} has recurrent layers, which the transformers engine cannot run")
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, visible)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise InputError(f"{type(model).__name__} does not take its attention from transformers' AttentionInterface")
