"""Attention over packed rows: each document attends to itself alone, with no dense mask.

A micro-batch is one row of packed tokens, so linear layers compute no padding. For attention the
documents, sorted by length, are spread into a few right-padded rectangles, each one causal SDPA call:
a real token never looks at padding, which lies after it. A dense block mask over the pack is slower
than padding on CPU, and transformers' own packed path contaminates silently unless the cache is off
(`use_cache=False`) and no mask is given; `distill.training.forward` checks that it does not happen.

Registered with transformers' `AttentionInterface`, so every causal LM of transformers that hands its
keyword arguments to attention works. Sliding windows shorter than a document, soft-capping and
attention sinks are refused, not approximated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from pipeline.errors import InputError

NAME = "distill_packed"
WASTE = 1.3
"""A rectangle may hold this many times the attention area that its documents need."""
SHORT = 256
"""Up to this width plain matrix products beat CPU SDPA in half precision (2 to 7 times, measured)."""


@dataclass(frozen=True)
class Block:
    """A rectangle: ``documents`` rows of ``width`` slots, filled from packed tokens start..end.

    ``slots`` (end - start,) says where each token goes, or is None where every slot is filled.
    """

    start: int
    end: int
    documents: int
    width: int
    slots: Tensor | None


def blocks(lengths: Sequence[int], device: torch.device | str = "cpu") -> list[Block]:
    """Cover documents of ascending ``lengths``, packed in this order, with few, well-filled rectangles."""
    runs: list[list[int]] = []
    area = 0
    for length in lengths:
        if not runs or (len(runs[-1]) + 1) * length**2 > WASTE * (area + length**2):
            runs.append([])
            area = 0
        runs[-1].append(length)
        area += length**2
    result, start = [], 0
    for run in runs:
        width, end = max(run), start + sum(run)
        slots = None
        if min(run) < width:
            slots = torch.cat([torch.arange(n) + row * width for row, n in enumerate(run)]).to(device)
        result.append(Block(start, end, len(run), width, slots))
        start = end
    return result


class _Spread(torch.autograd.Function):
    """Rows of x to their slots in a zeroed buffer. The backward is a plain gather: slots are unique."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(slots)
        return x.new_zeros((size, *x.shape[1:])).index_copy_(0, slots, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (slots,) = ctx.saved_tensors
        return grads[0].index_select(0, slots), None, None


class _Collect(torch.autograd.Function):
    """The inverse of `_Spread`: read the slots back into packed rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.size = x.shape[0]
        return x.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return grads[0].new_zeros((ctx.size, *grads[0].shape[1:])).index_copy_(0, slots, grads[0]), None


_spread: Callable[[Tensor, Tensor, int], Tensor] = _Spread.apply
_collect: Callable[[Tensor, Tensor], Tensor] = _Collect.apply


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: list[Block] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Query (1, heads, tokens, D), key and value (1, kv_heads, tokens, D) -> (1, tokens, heads, D)."""
    if documents is None or attention_mask is not None:
        raise InputError("packed attention needs the documents of the pack, and no attention mask")
    if dropout or any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise InputError("packed attention has no dropout, soft-capping, sinks or position bias")
    if sliding_window is not None and sliding_window < max(block.width for block in documents):
        raise InputError(f"a document is longer than the model's sliding window of {sliding_window} tokens")
    # under autocast, norms and rotary return fp32 while the projections (value) are half precision
    q, k, v = (x.squeeze(0).transpose(0, 1).to(value.dtype) for x in (query, key, value))
    spans = [(block, slice(block.start, block.end)) for block in documents]
    out = [_attend(block, q[span], k[span], v[span], scaling) for block, span in spans]
    return (out[0] if len(out) == 1 else torch.cat(out)).unsqueeze(0), None


def _attend(block: Block, q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    size = block.documents * block.width

    def rectangle(x: Tensor) -> Tensor:
        if block.slots is not None:
            x = _spread(x, block.slots, size)
        return x.reshape(block.documents, block.width, *x.shape[1:]).transpose(1, 2)

    attend = _products if q.device.type == "cpu" and q.element_size() == 2 and block.width <= SHORT else _sdpa
    out = attend(rectangle(q), rectangle(k), rectangle(v), scaling)
    flat = out.transpose(1, 2).reshape(size, out.shape[1], out.shape[3])
    return flat if block.slots is None else _collect(flat, block.slots)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    """q (N, heads, T, D), k and v (N, kv_heads, T, D) -> (N, heads, T, D), causal; kv never repeated."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])


def _products(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    """The same with two batched products; the heads that share a kv head fold into the query axis."""
    n, heads, width, size = q.shape
    kv_heads = k.shape[1]
    causal = torch.full((width, width), -math.inf, dtype=q.dtype, device=q.device).triu(1)
    mask = causal.repeat(heads // kv_heads, 1)
    q = q.reshape(n * kv_heads, heads // kv_heads * width, size)
    k, v = k.reshape(n * kv_heads, width, size), v.reshape(n * kv_heads, width, v.shape[-1])
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scaling or size**-0.5)
    return torch.bmm(scores.softmax(-1), v).reshape(n, heads, width, v.shape[-1])


AttentionInterface.register(NAME, packed_attention)
