"""Attention over `SlotCache`, as the two functions that transformers lets us register: attention and its mask.

The query heads of a group are folded into the query axis, so keys and values are never repeated. In a
decoding step, the rows that share a prompt attend to it together, in one matrix product; one softmax
covers the scores of the prompt and of the row's own tokens. Masks come from transformers' own mask
functions, evaluated at each row's positions, so sliding windows keep working. Any model whose attention
goes through `AttentionInterface` works; recurrent layers are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from distill.engines.cache import CURRENT, SlotCache
from pipeline.errors import InputError

NAME = "distill_slots"
TRY = "the transformers engine cannot run it; try the vllm engine"


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
    cache = CURRENT.get()
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise InputError(f"{type(module).__name__} has attention sinks or position biases: {TRY}")
    if not cache.is_handed(key):
        raise InputError(f"{type(module).__name__} changes the keys that it gets from the cache: {TRY}")
    rows, heads, length, size = query.shape
    scaling = size**-0.5 if scaling is None else scaling
    folded = (query * scaling).reshape(rows * key.shape[1], -1, size)
    scores = torch.bmm(folded, key.flatten(0, 1).transpose(1, 2))
    if cache.shared is not None:
        scores = torch.cat([_prompt_scores(cache, folded, key.shape[1]), scores], -1)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    scores.view(rows, heads, length, -1).add_(attention_mask)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    mixed = torch.bmm(weights[..., -value.shape[2] :], value.flatten(0, 1))
    if cache.shared is not None:
        mixed += _prompt_values(cache, weights, key.shape[1])
    return mixed.view(rows, heads, length, -1).transpose(1, 2).contiguous(), None


def _prompt_scores(cache: SlotCache, queries: Tensor, heads: int) -> Tensor:
    """Scores (R kv, G, Lp) of ``queries`` (R kv, G, size), each against its row's prompt."""
    assert cache.layout is not None and cache.shared is not None
    to_places, to_rows, _ = cache.layout.indices(heads)
    keys = cache.shared[0].flatten(0, 1)
    asked = queries.index_select(0, to_places).view(len(keys), -1, queries.shape[2])
    scores = torch.bmm(asked, keys.transpose(1, 2)).view(len(to_places), -1)
    return scores.index_select(0, to_rows).view(*queries.shape[:2], -1)


def _prompt_values(cache: SlotCache, weights: Tensor, heads: int) -> Tensor:
    """The prompts' values, weighted by the first Lp of ``weights`` (R kv, G, L): (R kv, G, size)."""
    assert cache.layout is not None and cache.shared is not None
    to_places, to_rows, sharing = cache.layout.indices(heads)
    values = cache.shared[1].flatten(0, 1)
    prompt = weights[..., : values.shape[1]].contiguous().view(len(to_rows), -1)
    asked = prompt.index_select(0, to_places).view(len(values), -1, values.shape[1])
    mixed = torch.bmm(asked, values).view(len(to_places), -1)
    return mixed.index_select(0, to_rows).mul_(sharing.to(mixed.dtype)).view(*weights.shape[:2], -1)


def visible(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    dtype: torch.dtype = torch.float32,
    **kwargs: Any,
) -> Tensor:
    """An additive mask (R, 1, T, L): transformers' ``mask_function``, evaluated at the cache's positions."""
    cache = CURRENT.get()
    device = cache.seen.device
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    allowed = mask_function(rows, rows.new_zeros(()), cache.positions[:, None, :, None], cache.seen)
    mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
    return mask.masked_fill_(~allowed, -torch.inf)


def plug_in(model: Any) -> None:
    """Make ``model`` attend through `SlotCache`. It must be a private copy, as its configuration changes."""
    layers = DynamicCache(config=model.config.get_text_config()).layers
    if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers):
        raise InputError(f"{type(model).__name__} has recurrent layers: {TRY}")
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, visible)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise InputError(f"{type(model).__name__} does not use transformers' AttentionInterface: {TRY}")
