"""Attention over packed rows: each document attends only to itself, without a dense mask.

A micro-batch is one row of packed tokens, so linear layers compute no padding. For attention the
documents, sorted by length, are laid out in right-padded rectangles, each one causal SDPA call:
a real token never sees padding, which comes after it. On CPU, where a call costs little, a long document
(`ALONE`) gets a rectangle without padding, which needs no copy. A prefix that documents share is in the
pack once and in each of their rows, as keys and values. A dense block mask over the pack is slower
than padding on CPU, and transformers' own packed path contaminates silently unless the cache is off
(`use_cache=False`) and no mask is given; `distill.training.forward` checks that this does not happen.

Registered with transformers' `AttentionInterface`, so it works with every causal LM of transformers that
passes its keyword arguments on to attention. Sliding windows shorter than a document, soft-capping and
attention sinks are refused, not approximated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from transformers import AttentionInterface

from distill.tensors import put
from distill.training import rectangles
from pipeline.errors import InputError

NAME = "distill_packed"
WASTE = 1.3
"""A rectangle may hold this many times the attention area that its documents need."""
ALONE = 48
"""On CPU a document of at least this many tokens shares its rectangle only with documents of the same length: copies
cost more than calls. Documents with a shared prefix are exempt, because they are copied in any case."""
SKIP = 3
"""A row's shared prefix gets no queries if it is at least 1 / SKIP of the row: the mask that this needs costs, too."""
SHORT = 512
"""Up to this width plain matrix products beat CPU SDPA in half precision (3 times at 128, 1.3 at 512, measured)."""


@dataclass(frozen=True)
class Block:
    """A rectangle of ``rows`` by ``width`` slots, in which the packed tokens start..end attend.

    A row holds everything that its document may see, from the first token on. ``tokens`` (rows * width,) is the
    packed token in each slot (an arbitrary one for empty slots, which come last in a row), or None if they lie there
    in order. The first ``skip`` slots of each row have no query. ``places`` (end - start,) is the index of each
    token's output among the rows * (width - skip) outputs, or None if they are in order. ``longest`` is the number of
    tokens of the longest document: a sliding window must cover these, not the empty slots.
    """

    start: int
    end: int
    rows: int
    width: int
    longest: int
    skip: int = 0
    tokens: Tensor | None = None
    places: Tensor | None = None


def blocks(
    documents: Sequence[Sequence[range]],
    device: torch.device | str = "cpu",
    multiple: int = 1,
    fill: range = range(0),
) -> list[Block]:
    """Cover documents with few, well-filled rectangles whose widths are multiples of ``multiple``.

    A document is given by the spans of packed tokens that it sees, its own last; the documents' own spans are
    adjacent. Neighbours should be of about the same length. ``fill`` are the padding tokens after them.
    """
    sizes = [sum(map(len, spans)) for spans in documents]
    if fill:
        documents, sizes = [*documents, [fill]], [*sizes, 0]
    lengths = [-(-sum(map(len, spans)) // multiple) * multiple for spans in documents]
    alone = ALONE if torch.device(device).type == "cpu" else math.inf
    runs: list[list[int]] = []
    area = widest = 0
    for index, length in enumerate(lengths):
        waste = WASTE if max(widest, length) < alone or len(documents[index]) > 1 else 1
        fits = runs and (len(runs[-1]) + 1) * max(widest, length) ** 2 <= waste * (area + length**2)
        if not fits or (len(documents[index]) > 1) != (len(documents[index - 1]) > 1):
            runs.append([])
            area = widest = 0
        runs[-1].append(index)
        area, widest = area + length**2, max(widest, length)
    return [
        _block([documents[i] for i in run], max(lengths[i] for i in run), max(sizes[i] for i in run), device)
        for run in runs
    ]


def _block(documents: Sequence[Sequence[range]], width: int, longest: int, device: torch.device | str) -> Block:
    start, end, rows = documents[0][-1].start, documents[-1][-1].stop, len(documents)
    if end - start == rows * width:
        return Block(start, end, rows, width, longest)
    seen = min(sum(map(len, spans[:-1])) for spans in documents)
    skip = seen if SKIP * seen >= width else 0
    tokens: list[int] = []
    places: list[int] = []
    for row, spans in enumerate(documents):
        filled = list(chain.from_iterable(spans))
        first = row * (width - skip) - skip
        places += range(first + len(filled) - len(spans[-1]), first + len(filled))
        tokens += filled + [start] * (width - len(filled))
    indices = (put(values, device) for values in (tokens, places))
    return Block(start, end, rows, width, longest, skip, *indices)


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
    if sliding_window is not None and sliding_window < max(block.longest for block in documents):
        raise InputError(f"a document is longer than the model's sliding window of {sliding_window} tokens")
    # under autocast, norms and rotary return fp32 while the projections (value) are half precision
    q, k, v = (x.squeeze(0).transpose(0, 1).to(value.dtype) for x in (query, key, value))
    if _written_out(q, v):
        out: Tensor = _packed(q, k, v, documents, scaling)
    else:
        parts = [_outputs(block, _sdpa(*_rectangles(block, q, k, v), scaling)) for block in documents]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.unsqueeze(0), None


def _written_out(q: Tensor, v: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype in (torch.float32, torch.bfloat16) and q.shape[-1] == v.shape[-1]


def _rectangles(block: Block, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed q, k and v (tokens, heads, D) laid out for a block, (rows, heads, slots, D)."""

    def rectangle(x: Tensor, skip: int = 0) -> Tensor:
        slots = _slots(block, skip)
        x = x[block.start : block.end] if slots is None else x.index_select(0, slots)
        return x.view(block.rows, -1, *x.shape[1:]).transpose(1, 2)

    return rectangle(q, block.skip), rectangle(k), rectangle(v)


def _slots(block: Block, skip: int) -> Tensor | None:
    return None if block.tokens is None else block.tokens.view(block.rows, -1)[:, skip:].flatten()


def _outputs(block: Block, out: Tensor) -> Tensor:
    """(rows, heads, slots, D) -> (end - start, heads, D)"""
    flat = out.transpose(1, 2).flatten(0, 1)
    return flat if block.places is None else flat.index_select(0, block.places)


class _Packed(Function):
    """All blocks of a pack in one function, on CPU. Autograd would keep a copy of each rectangle, and sum gradients
    over the whole pack for each. q (N, heads, D), k and v (N, kv_heads, D) -> (N, heads, D)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, documents: list[Block], scaling: float | None) -> Tensor:
        out, sums = torch.empty_like(q, memory_format=torch.contiguous_format), []
        for block in documents:
            made, total = _kernels(block, q).forward(*_rectangles(block, q, k, v), scaling)
            out[block.start : block.end] = _outputs(block, made)
            sums.append(total)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.documents, ctx.scaling = documents, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        q, k, v, out, *sums = ctx.saved_tensors
        back = [torch.zeros(x.shape, dtype=torch.float32) for x in (q, k, v)]  # shared tokens sum many small parts
        for block, total in zip(ctx.documents, sums, strict=True):
            g, made = (_at_queries(block, x[block.start : block.end]) for x in (grads[0], out))
            found = _kernels(block, q).backward(g, *_rectangles(block, q, k, v), made, total, ctx.scaling)
            for whole, part, skip in zip(back, found, (block.skip, 0, 0), strict=True):
                slots, flat = _slots(block, skip), part.transpose(1, 2).flatten(0, 1)
                if slots is None:
                    whole[block.start : block.end] += flat
                else:
                    whole.index_add_(0, slots, flat.float())
        return *(whole.to(q.dtype) for whole in back), None, None


def _kernels(block: Block, q: Tensor) -> type[rectangles.Flash] | type[rectangles.Products]:
    return rectangles.Products if q.element_size() == 2 and block.width <= SHORT else rectangles.Flash


def _at_queries(block: Block, x: Tensor) -> Tensor:
    """(end - start, heads, D) -> (rows, heads, slots with a query, D), zero where a slot has no token of the block:
    the inverse of `_outputs`."""
    if block.places is not None:
        slots = x.new_zeros(block.rows * (block.width - block.skip), *x.shape[1:])
        x = slots.index_copy_(0, block.places, x)
    return x.view(block.rows, -1, *x.shape[1:]).transpose(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    """q (N, heads, T, D), k and v (N, kv_heads, L, D) -> (N, heads, T, D).

    The queries are the last T of L positions, each of which sees those before it.
    """
    how, grouped = rectangles.causality(q, k), q.shape[1] != k.shape[1]
    if grouped and (how["attn_mask"] is not None or q.element_size() > 2):  # else CUDA stores all scores
        k, v, grouped = *(x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v)), False
    return F.scaled_dot_product_attention(q, k, v, **how, scale=scaling, enable_gqa=grouped)


_packed: Callable[..., Tensor] = _Packed.apply
AttentionInterface.register(NAME, packed_attention)
