"""Layers whose forward and backward are written out: the same functions, in fewer operations.

A training step over small rows is as much calling, and passing over memory, as computing. `lean` replaces, while
training, the forward of

- LoRA layers (`distill.training.folded`), and gated feed-forward blocks of three of them (`distill.training.gated`);
- RMS norms that are no more than that (`distill.engines.norms` finds them): an eighth of autograd's passes.

Full precision alone; under autocast, and for half or quantised weights, layers are as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from distill.engines.norms import plain_norms
from distill.training.folded import can_fold, folded, lora_of
from distill.training.gated import gated, projections


@contextmanager
def lean(model: nn.Module) -> Iterator[None]:
    """Within this context the layers of ``model`` that can be are replaced."""
    from peft.tuners.lora import Linear

    found: dict[Any, Any] = {m: _lora for m in model.modules() if type(m) is Linear and can_fold(m)}
    found |= {m: partial(_feed_forward, layers) for m in model.modules() if (layers := projections(m))}
    found |= {
        m: partial(_norm, epsilon) for m, epsilon in plain_norms(model).items() if m.weight.dtype == torch.float32
    }
    for module, forward in found.items():
        module.forward = partial(forward, module, module.forward)
    try:
        yield
    finally:
        for module in found:
            del module.forward


def _written_out(x: Tensor) -> bool:
    return x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)


def _lora(layer: Any, otherwise: Any, x: Tensor) -> Tensor:
    base = layer.get_base_layer()
    if layer.disable_adapters:
        return F.linear(x, base.weight, base.bias)
    lora = lora_of(layer)
    if not _written_out(x) or base.weight.requires_grad:
        return F.linear(x, lora.folded(), base.bias)
    return folded(x, lora.weight, base.bias, lora.a, lora.b, lora.scaling)


def _feed_forward(layers: list[Any], block: Any, otherwise: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    fixed = not any(layer.disable_adapters or layer.get_base_layer().weight.requires_grad for layer in layers)
    return gated(layers, x) if fixed and _written_out(x) else otherwise(x)


def _norm(epsilon: float, module: Any, otherwise: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
    if not _written_out(hidden_states):
        return otherwise(hidden_states)
    return _rms_norm(hidden_states, module.weight, epsilon)


class _RmsNorm(Function):
    """x (..., D) to w x / sqrt(mean(x^2) + epsilon)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        to_weight = (grads[0] * x).mul_(scale).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None
        back = grads[0] * weight
        along = torch.linalg.vecdot(back, x).unsqueeze(-1)
        return back.mul_(scale).addcmul_(x, along.mul_(scale**3).div_(-x.shape[-1])), to_weight, None


_rms_norm: Callable[..., Tensor] = _RmsNorm.apply
