"""A gated feed-forward block written out: down(silu(gate x) * up x), each product with LoRA (Shazeer 2020,
https://arxiv.org/abs/2002.05202, as in Llama and Qwen).

Half of a small model's time beside its products is passing over what lies between them, and half of its memory is
keeping that. So the block runs over tiles of tokens that stay in cache, keeps what goes into the activation alone,
and makes the rest of it again in the backward pass, which costs no product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from distill.training.folded import Factors, Lora, can_fold, lora_of

TILE = 256
"""Tokens that pass through the block at once, on CPU."""
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def projections(block: nn.Module) -> list[Any] | None:
    """The three LoRA layers of a block that is no more than this, or None."""
    found = [getattr(block, name, None) for name in PROJECTIONS]
    plain = all(_is_plain(layer) for layer in found)
    return found if plain and _is_gated(block, found) else None


def _is_plain(layer: Any) -> bool:
    from peft.tuners.lora import Linear

    return type(layer) is Linear and can_fold(layer) and layer.get_base_layer().bias is None


@torch.no_grad()
def _is_gated(block: nn.Module, layers: list[Any]) -> bool:
    gate, up, down = layers
    weight = gate.get_base_layer().weight
    probe = torch.randn(1, 3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.device)
    try:
        return torch.allclose(block(probe), down(F.silu(gate(probe)) * up(probe)), atol=1e-6)
    except (TypeError, ValueError, RuntimeError):  # one that wants more than hidden states
        return False


def gated(layers: list[Any], x: Tensor) -> Tensor:
    """(..., D) -> (..., D)"""
    gate, up, down = (lora_of(layer) for layer in layers)
    made: Tensor = _gated(x.flatten(0, -2), *gate, *up, *down)
    return made.view_as(x)


class _Gated(Function):
    """x (N, D) and three times the fields of a `Lora` to (N, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *fields: Any) -> Tensor:
        gate, up, down = _loras(fields)
        (to_gate, to_up), from_inner = (side.folded().t() for side in (gate, up)), down.folded().t()
        opened, raised, out = (x.new_empty(len(x), n) for n in (len(gate.weight), len(up.weight), len(down.weight)))
        for tile in _tiles(x):
            torch.mm(x[tile], to_gate, out=opened[tile])
            torch.mm(x[tile], to_up, out=raised[tile])
            torch.mm(F.silu(opened[tile]).mul_(raised[tile]), from_inner, out=out[tile])
        tensors = [field for field in fields if isinstance(field, Tensor)]
        ctx.save_for_backward(x, opened, raised, *tensors)
        ctx.scalings = [side.scaling for side in (gate, up, down)]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, opened, raised, *tensors = ctx.saved_tensors
        sides = [Lora(*tensors[3 * i : 3 * i + 3], scaling) for i, scaling in enumerate(ctx.scalings)]  # type: ignore[call-arg]
        gate, up, down = (side.folded() for side in sides)
        sums = [Factors(side) for side in sides]
        back = torch.empty_like(x)
        for tile in _tiles(x):
            g, before = grads[0][tile], opened[tile]
            active = F.silu(before)
            inner = g @ down
            sums[2].add(active * raised[tile], g)
            to_up = active.mul_(inner)
            to_gate = torch.ops.aten.silu_backward(inner.mul_(raised[tile]), before)
            sums[0].add(x[tile], to_gate)
            sums[1].add(x[tile], to_up)
            torch.mm(to_gate, gate, out=back[tile]).addmm_(to_up, up)
        factors = [total.gradients() for total in sums]
        return back, *(part for a, b in factors for part in (None, a, b, None))


def _loras(fields: tuple[Any, ...]) -> tuple[Lora, Lora, Lora]:
    return Lora(*fields[:4]), Lora(*fields[4:8]), Lora(*fields[8:])


def _tiles(x: Tensor) -> list[slice]:
    size = TILE if x.device.type == "cpu" else max(1, len(x))
    return [slice(start, start + size) for start in range(0, len(x), size)]


_gated: Callable[..., Tensor] = _Gated.apply
