"""Layers whose forward and backward are written out: the same functions, in fewer operations and less memory.

A training step over small rows is as much calling, and passing over memory, as computing. `lean` replaces, while
training, the forward of

- LoRA layers (`distill.training.adapted`), and gated feed-forward blocks of three of them (`distill.training.gated`);
- RMS norms that are no more than that (`distill.engines.norms` finds them): an eighth of autograd's passes.

In fp32, and under autocast as that would: products in half precision, norms in full. What is of another kind
(quantised or trained weights under an adapter, dropout) stays as it was.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from distill.engines.norms import plain_norms
from distill.training.adapted import FULL, HALF, adapted, is_plain, lora_of, precision
from distill.training.gated import gated, projections


@contextmanager
def lean(model: nn.Module, sharded: bool = False) -> Iterator[None]:
    """Within this context the layers of ``model`` that can be are replaced. From its first use under autocast on, each
    has its fixed weight in half precision, too, unless weights are ``sharded``, which come and go."""
    from peft.tuners.lora import Linear

    casts = Casts(keeps=not sharded)
    found: dict[Any, Any] = {m: partial(_lora, casts) for m in model.modules() if type(m) is Linear and is_plain(m)}
    found |= {m: partial(_feed_forward, casts, layers) for m in model.modules() if (layers := projections(m))}
    found |= {m: partial(_norm, epsilon) for m, epsilon in plain_norms(model, FULL).items()}
    for module, forward in found.items():
        module.forward = partial(forward, module, module.forward)
    try:
        yield
    finally:
        for module in found:
            del module.forward


class Casts:
    """Tensors in the precision of the products: fixed weights, and the input that several layers share, cast once."""

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._weights: dict[int, Tensor] = {}
        self._input: tuple[Callable[[], Any], Tensor] | None = None

    def __reduce__(self) -> Any:
        return Casts, (self._keeps,)  # another process makes its own

    def weight(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        if weight.dtype == dtype or not self._keeps:
            return weight.to(dtype)
        if id(weight) not in self._weights:
            self._weights[id(weight)] = weight.detach().to(dtype)
        return self._weights[id(weight)]

    def input(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dtype == dtype:
            return x
        if self._input is None or self._input[0]() is not x:
            self._input = weakref.ref(x), x.to(dtype)
        return self._input[1]


def _is_fixed(layers: Sequence[Any], dtype: torch.dtype) -> bool:
    """Whether the weights under the adapters are not trained, and are or can be had in this precision."""
    weights = [layer.get_base_layer().weight for layer in layers]
    return dtype in (FULL, HALF) and not any(w.requires_grad or w.dtype not in (dtype, FULL) for w in weights)


def _lora(casts: Casts, layer: Any, otherwise: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    dtype = precision(x)
    if not _is_fixed([layer], dtype):
        return otherwise(x)
    base = layer.get_base_layer()
    x, weight = casts.input(x, dtype), casts.weight(base.weight, dtype)
    if layer.disable_adapters:
        return F.linear(x, weight, None if base.bias is None else base.bias.to(dtype))
    return adapted(x, base.bias, *lora_of(layer, weight))


def _feed_forward(
    casts: Casts, layers: list[Any], block: Any, otherwise: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    dtype = precision(x)
    if any(layer.disable_adapters for layer in layers) or not _is_fixed(layers, dtype):
        return otherwise(x)
    sides = [lora_of(layer, casts.weight(layer.get_base_layer().weight, dtype)) for layer in layers]
    return gated(casts.input(x, dtype), sides)


def _norm(epsilon: float, module: Any, otherwise: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
    if {hidden_states.dtype, module.weight.dtype} - {FULL, HALF}:
        return otherwise(hidden_states)
    return _rms_norm(hidden_states, module.weight, epsilon)


class _RmsNorm(Function):
    """x (..., D) to w x / sqrt(mean(x^2) + epsilon), computed in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        full = x.float()
        norm = torch.linalg.vector_norm(full, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (full * scale).mul_(weight).to(torch.promote_types(x.dtype, weight.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        g, full = grads[0].float(), x.float()
        to_weight = (g * full).mul_(scale).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None
        back = g * weight
        along = torch.linalg.vecdot(back, full).unsqueeze(-1)
        back = back.mul_(scale).addcmul_(full, along.mul_(scale**3).div_(-x.shape[-1]))
        return back.to(x.dtype), to_weight, None


_rms_norm: Callable[..., Tensor] = _RmsNorm.apply
