"""Forward and backward of two layers written out: LoRA and the RMS norm. Same functions, fewer operations.

A training step over small rows is as much calling, and passing over memory, as computing. `lean` replaces, while
training, the forward of

- LoRA layers: W + s B A is formed once per micro-batch and the tokens pass through one product instead of
  three, forward and backward. The gradients of A and B come from that of W where it is about as small, from the
  tokens times the other factor where it is not; then W + s B A is formed again rather than kept.
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

SMALL = 4
"""The gradient of W is taken where in * out <= SMALL r (in + out): equal operations at 2, larger products."""


@contextmanager
def lean(model: nn.Module) -> Iterator[None]:
    """Within this context the layers of ``model`` that can be are replaced."""
    from peft.tuners.lora import Linear

    found: dict[Any, Any] = {m: _lora for m in model.modules() if type(m) is Linear and _can_fold(m)}
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


def _can_fold(layer: Any) -> bool:
    base = layer.get_base_layer()
    if type(base) is not nn.Linear or base.weight.dtype != torch.float32 or layer.merged or layer.lora_variant:
        return False
    return len(layer.active_adapters) == 1 and isinstance(layer.lora_dropout[layer.active_adapters[0]], nn.Identity)


def _lora(layer: Any, otherwise: Any, x: Tensor) -> Tensor:
    base = layer.get_base_layer()
    if layer.disable_adapters:
        return F.linear(x, base.weight, base.bias)
    name = layer.active_adapters[0]
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    if not _written_out(x) or base.weight.requires_grad:
        return F.linear(x, torch.addmm(base.weight, b, a, alpha=layer.scaling[name]), base.bias)
    return _folded(x, base.weight, base.bias, a, b, layer.scaling[name])


class _Folded(Function):
    """x (..., in) to x (W + s B A)^T + bias (..., out), for fixed W and bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        folded = torch.addmm(weight, b, a, alpha=scaling)
        ctx.small = weight.numel() <= SMALL * len(a) * sum(weight.shape)
        ctx.save_for_backward(x, folded if ctx.small else weight, a, b)
        ctx.scaling = scaling
        return F.linear(x, folded, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        x, g = x.flatten(0, -2), grads[0].flatten(0, -2)
        back = None
        if ctx.needs_input_grad[0]:
            back = g @ (weight if ctx.small else torch.addmm(weight, b, a, alpha=ctx.scaling))
            back = back.view(*grads[0].shape[:-1], -1)
        if ctx.small:
            whole = (g.t() @ x).mul_(ctx.scaling)
            return back, None, None, b.t() @ whole, whole @ a.t(), None
        to_a, to_b = (g @ b).mul_(ctx.scaling), (x @ a.t()).mul_(ctx.scaling)
        return back, None, None, to_a.t() @ x, (to_b.t() @ g).t(), None  # g.t() @ to_b is slower by half


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


_folded: Callable[..., Tensor] = _Folded.apply
_rms_norm: Callable[..., Tensor] = _RmsNorm.apply
