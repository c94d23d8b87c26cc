"""Rotary position embeddings with half the passes over memory, forward and backward.

Each model of transformers rotates queries and keys with a function in its own module, ``apply_rotary_pos_emb``, which
is the same in nearly all of them. `quick_rotary` keeps no list of models: while training, it replaces each function
that gives the same result as ours on random numbers. All others (interleaved, partial) stay.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

NAME = "apply_rotary_pos_emb"


@contextmanager
def quick_rotary(model: nn.Module) -> Iterator[None]:
    """Within this context the Python modules that define the layers of ``model`` rotate with `rotate`."""
    homes = {type(module).__module__: sys.modules[type(module).__module__] for module in model.modules()}
    found = {home: own for home in homes.values() if (own := vars(home).get(NAME)) and _is_plain(own)}
    for home, own in found.items():
        setattr(home, NAME, _wrapped(own))
    try:
        yield
    finally:
        for home, own in found.items():
            setattr(home, NAME, own)


@torch.no_grad()
def _is_plain(own: Any) -> bool:
    if list(inspect.signature(own).parameters) != ["q", "k", "cos", "sin", "unsqueeze_dim"]:
        return False
    generator = torch.Generator().manual_seed(0)
    angles = torch.randn(2, 5, 4, generator=generator).repeat(1, 1, 2)
    q, k = (torch.randn(2, heads, 5, 8, generator=generator) for heads in (4, 2))
    pairs = zip(own(q, k, angles.cos(), angles.sin()), rotate(q, k, angles.cos(), angles.sin()), strict=True)
    return all(theirs.shape == ours.shape and torch.allclose(theirs, ours, atol=1e-6) for theirs, ours in pairs)


def _wrapped(own: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    def apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
        same = q.dtype == k.dtype == cos.dtype and q.shape[-1] == k.shape[-1] == cos.shape[-1]
        samples = torch.is_inference_mode_enabled()  # its workers were forked before, and rotate with ``own``
        return rotate(q, k, cos, sin, unsqueeze_dim) if same and not samples else own(q, k, cos, sin, unsqueeze_dim)

    return apply


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, heads, T, D), rotated by angles given as ``cos`` and ``sin`` (B, T, D)."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _rotated(q, cos, sin), _rotated(k, cos, sin)


class _Rotated(Function):
    """x = (x1, x2) -> x cos + (-x2, x1) sin."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, -1)
        return _mixed(x, cos, (-1, first), (1, second))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, -1)
        return _mixed(grads[0], cos, (1, second), (-1, first)), None, None


def _mixed(x: Tensor, cos: Tensor, to_first: tuple[int, Tensor], to_second: tuple[int, Tensor]) -> Tensor:
    """x cos, with the other half of x, times a sign and a sine, added to each of its halves."""
    mixed = x * cos
    (x1, x2), (first, second) = x.chunk(2, -1), mixed.chunk(2, -1)
    first.addcmul_(x2, to_first[1], value=to_first[0])
    second.addcmul_(x1, to_second[1], value=to_second[0])
    return mixed


_rotated: Callable[[Tensor, Tensor, Tensor], Tensor] = _Rotated.apply
