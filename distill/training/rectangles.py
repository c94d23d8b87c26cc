"""Causal attention in one rectangle of equally wide rows on CPU, forward and backward, in two ways.

q is (rows, heads, T, D), k and v are (rows, kv_heads, L, D). Heads that share a kv head are adjacent. The queries are
the last T of L positions; each sees itself and the positions before it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Flash:
    """torch's own kernels: scores in blocks, none of which is kept (Dao 2023, https://arxiv.org/abs/2307.08691)."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> tuple[Tensor, Tensor]:
        """The outputs (rows, heads, T, D), and what `backward` needs to know of the scores."""
        made: tuple[Tensor, Tensor] = _flash(q, k, v, 0.0, **causality(q, k), scale=scaling)
        return made

    @staticmethod
    def backward(
        g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, scaling: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v from ``g``, the gradient of the outputs ``out``."""
        found: tuple[Tensor, Tensor, Tensor] = _flash_backward(
            g, q, k, v, out, sums, 0.0, **causality(q, k), scale=scaling
        )
        return found


class Products:
    """Batched products with all scores at once, recomputed in the backward pass. Heads that share a kv head are folded
    into the query axis. In half precision torch's kernels are slower than this up to hundreds of tokens."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, scaling: float | None) -> tuple[Tensor, Tensor]:
        flat_q, flat_k, flat_v = _folded(q, k.shape[1]), k.flatten(0, 1), v.flatten(0, 1)
        made = torch.bmm(_shares(q, flat_q, flat_k, scaling), flat_v)
        return made.view(*q.shape[:-1], -1), q.new_empty(0)

    @staticmethod
    def backward(
        g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, scaling: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        flat_q, flat_k, flat_v, flat_g = (
            _folded(q, k.shape[1]),
            k.flatten(0, 1),
            v.flatten(0, 1),
            _folded(g, k.shape[1]),
        )
        shares = _shares(q, flat_q, flat_k, scaling)
        to_v = torch.bmm(shares.transpose(1, 2), flat_g)
        to_shares = torch.bmm(flat_g, flat_v.transpose(1, 2))
        to_scores = torch.ops.aten._softmax_backward_data(to_shares, shares, -1, shares.dtype)
        to_scores.mul_(_scale(q, scaling))
        to_q, to_k = torch.bmm(to_scores, flat_k), torch.bmm(to_scores.transpose(1, 2), flat_q)
        return to_q.view_as(q), to_k.view(k.shape), to_v.view(v.shape)


def _folded(x: Tensor, kv_heads: int) -> Tensor:
    """(rows, heads, T, D) -> (rows * kv_heads, heads / kv_heads * T, D)"""
    return x.reshape(len(x) * kv_heads, -1, x.shape[-1])


def _shares(q: Tensor, flat_q: Tensor, flat_k: Tensor, scaling: float | None) -> Tensor:
    """The attention weights, folded."""
    mask = causal(q, flat_k).repeat(flat_q.shape[1] // q.shape[2], 1)
    return torch.baddbmm(mask, flat_q, flat_k.transpose(1, 2), alpha=_scale(q, scaling)).softmax(-1)


def _scale(q: Tensor, scaling: float | None) -> float:
    return q.shape[-1] ** -0.5 if scaling is None else scaling


def causality(q: Tensor, k: Tensor) -> dict[str, Any]:
    """The causal mask as arguments of torch's attention."""
    whole = q.shape[2] == k.shape[2]
    return {"attn_mask": None if whole else causal(q, k), "is_causal": whole}


def causal(q: Tensor, k: Tensor) -> Tensor:
    """The additive mask (T, L): -inf where a query would see a later key."""
    asked, seen = q.shape[-2], k.shape[-2]
    return q.new_full((asked, seen), -math.inf).triu(1 + seen - asked)


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
