"""A gated feed-forward block written out: down(silu(gate x) * up x), each product with LoRA (Shazeer 2020,
https://arxiv.org/abs/2002.05202, as in Llama and Qwen).

A small model spends half of its time outside of products on passes over what lies between them, and half of its memory
on keeping that. So the block runs over tiles of tokens that stay in cache, keeps only the outputs of gate and up, and
recomputes the rest in the backward pass, which costs no product.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from distill.training.adapted import Lora, Products, factors_of

TILE = 256
"""Tokens per tile on CPU."""
WIDTH, TENSORS = len(Lora._fields), 3
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def projections(block: nn.Module, plain: Collection[nn.Module]) -> list[Any] | None:
    """The three LoRA layers of a block that is nothing more than a gated one, all among ``plain``; otherwise None."""
    found: list[Any] = [getattr(block, name, None) for name in PROJECTIONS]
    if any(layer not in plain or layer.get_base_layer().bias is not None for layer in found):
        return None
    return found if _is_gated(block, found) else None


@torch.no_grad()
def _is_gated(block: nn.Module, layers: list[Any]) -> bool:
    gate, up, down = layers
    a, weight = factors_of(gate)[0], gate.get_base_layer().weight
    probe = torch.randn(1, 3, a.shape[1], generator=torch.Generator().manual_seed(0))
    probe = probe.to(weight if weight.is_floating_point() else a)
    try:
        return torch.allclose(block(probe), down(F.silu(gate(probe)) * up(probe)), atol=1e-6)
    except (TypeError, ValueError, RuntimeError):  # a block that needs more than hidden states
        return False


def gated(x: Tensor, sides: Sequence[Lora]) -> Tensor:
    """(..., D) -> (..., D)"""
    made: Tensor = _gated(x.flatten(0, -2), *(field for side in sides for field in side))
    return made.view_as(x)


class _Gated(Function):
    """x (N, D) and the fields of three `Lora`s (gate, up, down) -> (N, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *fields: Any) -> Tensor:
        sides = [fields[i : i + WIDTH] for i in range(0, len(fields), WIDTH)]
        gate, up, down = products = [Products(Lora(*side)) for side in sides]
        opened, raised, out = (x.new_empty(len(x), each.width) for each in products)
        for tile in _tiles(x):
            gate.forward(x[tile], opened[tile])
            up.forward(x[tile], raised[tile])
            down.forward(F.silu(opened[tile]).mul_(raised[tile]), out[tile])
        ctx.save_for_backward(x, opened, raised, *(tensor for side in sides for tensor in side[:TENSORS]))
        ctx.rest = [side[TENSORS:] for side in sides]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, opened, raised, *tensors = ctx.saved_tensors
        gate, up, down = products = [
            Products(Lora(*tensors[TENSORS * i : TENSORS * (i + 1)], *rest)) for i, rest in enumerate(ctx.rest)
        ]
        back = torch.empty_like(x)
        for tile in _tiles(x):
            before = opened[tile]
            active, inner = F.silu(before), torch.empty_like(before)
            down.backward(grads[0][tile], active * raised[tile], inner)
            to_up = active.mul_(inner)
            to_gate = torch.ops.aten.silu_backward(inner.mul_(raised[tile]), before)
            gate.backward(to_gate, x[tile], back[tile])
            up.backward(to_up, x[tile], back[tile], add=True)
        factors = [each.gradients() for each in products]
        return back, *(part for a, b in factors for part in (None, a, b, None, None))


def _tiles(x: Tensor) -> list[slice]:
    size = TILE if x.device.type == "cpu" else max(1, len(x))
    return [slice(start, start + size) for start in range(0, len(x), size)]


_gated: Callable[..., Tensor] = _Gated.apply
