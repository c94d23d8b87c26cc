"""Attention over packed rows: each document attends to itself alone, with no dense mask.

A micro-batch is one row of packed tokens, so linear layers compute no padding. For attention the
documents, sorted by length, are spread into a few right-padded rectangles, each one causal SDPA call:
a real token never looks at padding, which lies after it. A beginning that documents share is once in
the pack and in each of their rows, where it only answers. A dense block mask over the pack is slower
than padding on CPU, and transformers' own packed path contaminates silently unless the cache is off
(`use_cache=False`) and no mask is given; `distill.training.forward` checks that it does not happen.

Registered with transformers' `AttentionInterface`, so every causal LM of transformers that hands its
keyword arguments to attention works. Sliding windows shorter than a document, soft-capping and
attention sinks are refused, not approximated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from pipeline.errors import InputError

NAME = "distill_packed"
WASTE = 1.3
"""A rectangle may hold this many times the attention area that its documents need."""
SKIP = 3
"""What a row sees beside its own tokens asks nothing if it is at least 1 / SKIP of the row: a mask costs, too."""
SHORT = 256
"""Up to this width plain matrix products beat CPU SDPA in half precision (2 to 7 times, measured)."""


@dataclass(frozen=True)
class Block:
    """A rectangle of ``rows`` by ``width`` slots, in which packed tokens start..end attend.

    A row holds all that its document may see, from the first token on; ``tokens`` (rows * width,) says which
    packed token lies in each slot (any, where the slot is empty: it comes after all others), or is None where
    they lie there in order. The first ``skip`` slots of each row ask nothing; ``places`` (end - start,) says
    where each token's answer is among the rows * (width - skip) others, or is None where they are in order.
    """

    start: int
    end: int
    rows: int
    width: int
    skip: int = 0
    tokens: Tensor | None = None
    places: Tensor | None = None


def blocks(documents: Sequence[Sequence[range]], device: torch.device | str = "cpu") -> list[Block]:
    """Cover documents with few, well-filled rectangles.

    A document is given by the spans of packed tokens that it sees, its own last; own spans follow each other.
    Neighbours should be of about the same length.
    """
    lengths = [sum(map(len, spans)) for spans in documents]
    runs: list[list[int]] = []
    area = widest = 0
    for index, length in enumerate(lengths):
        fits = runs and (len(runs[-1]) + 1) * max(widest, length) ** 2 <= WASTE * (area + length**2)
        if not fits or (len(documents[index]) > 1) != (len(documents[index - 1]) > 1):
            runs.append([])
            area = widest = 0
        runs[-1].append(index)
        area, widest = area + length**2, max(widest, length)
    return [_block([documents[i] for i in run], max(lengths[i] for i in run), device) for run in runs]


def _block(documents: Sequence[Sequence[range]], width: int, device: torch.device | str) -> Block:
    start, end, rows = documents[0][-1].start, documents[-1][-1].stop, len(documents)
    if end - start == rows * width:
        return Block(start, end, rows, width)
    seen = min(sum(map(len, spans[:-1])) for spans in documents)
    skip = seen if SKIP * seen >= width else 0
    tokens: list[int] = []
    places: list[int] = []
    for row, spans in enumerate(documents):
        filled = list(chain.from_iterable(spans))
        first = row * (width - skip) - skip
        places += range(first + len(filled) - len(spans[-1]), first + len(filled))
        tokens += filled + [start] * (width - len(filled))
    indices = (torch.tensor(values, device=device) for values in (tokens, places))
    return Block(start, end, rows, width, skip, *indices)


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
    out = [_attend(block, q, k, v, scaling) for block in documents]
    return (out[0] if len(out) == 1 else torch.cat(out)).unsqueeze(0), None


def _attend(block: Block, q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    """The answers (end - start, heads, D) to the block's tokens."""

    def rectangle(x: Tensor, skip: int = 0) -> Tensor:
        if block.tokens is None:
            x = x[block.start : block.end]
        else:
            x = x.index_select(0, block.tokens.view(block.rows, -1)[:, skip:].flatten())
        return x.view(block.rows, -1, *x.shape[1:]).transpose(1, 2)

    attend = _products if q.device.type == "cpu" and q.element_size() == 2 and block.width <= SHORT else _sdpa
    out = attend(rectangle(q, block.skip), rectangle(k), rectangle(v), scaling)
    flat = out.transpose(1, 2).flatten(0, 1)
    return flat if block.places is None else flat.index_select(0, block.places)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    """q (N, heads, T, D), k and v (N, kv_heads, L, D) -> (N, heads, T, D); kv never repeated.

    The queries are the last T of L positions, each of which sees those before it.
    """
    grouped, whole = q.shape[1] != k.shape[1], q.shape[2] == k.shape[2]
    mask = None if whole else _causal(q, k)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=whole, scale=scaling, enable_gqa=grouped)


def _products(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> Tensor:
    """The same with two batched products; the heads that share a kv head fold into the query axis."""
    n, heads, width, size = q.shape
    kv_heads = k.shape[1]
    mask = _causal(q, k).repeat(heads // kv_heads, 1)
    q = q.reshape(n * kv_heads, heads // kv_heads * width, size)
    k, v = k.reshape(n * kv_heads, -1, size), v.reshape(n * kv_heads, -1, v.shape[-1])
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scaling or size**-0.5)
    return torch.bmm(scores.softmax(-1), v).reshape(n, heads, width, v.shape[-1])


def _causal(q: Tensor, k: Tensor) -> Tensor:
    """(T, L), -inf where a query would see a later key."""
    asked, seen = q.shape[2], k.shape[2]
    return q.new_full((asked, seen), -math.inf).triu(1 + seen - asked)


AttentionInterface.register(NAME, packed_attention)
