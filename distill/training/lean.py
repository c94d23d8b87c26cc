"""Replace layers by versions whose forward and backward are written out: the same functions, in fewer operations and
less memory.

In a training step over small rows, calls and passes over memory cost as much as the arithmetic. While training, `lean`
replaces the forward of

- LoRA layers (`distill.training.adapted`), and gated feed-forward blocks of three of them (`distill.training.gated`);
- plain RMS norms (`distill.engines.norms` finds them): an eighth of autograd's passes.

They compute in fp32, or in the precisions that autocast would choose: products in half precision, norms in full. 4-bit
weights are unpacked for each pass. Layers of any other kind (8 bits, trained weights under an adapter, dropout) stay as
they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from distill.engines.norms import plain_norms
from distill.training.adapted import FULL, HALF, Lora, adapted, factors_of, is_packed, is_plain, precision
from distill.training.gated import gated, projections


@contextmanager
def lean(model: nn.Module, sharded: bool = False) -> Iterator[None]:
    """Replace the layers of ``model`` that can be, within this context. From its first use under autocast on, each also
    keeps its fixed weight in half precision, unless the weights are ``sharded``: those come and go."""
    casts = _Casts(keeps=not sharded)
    plain = [module for module in model.modules() if is_plain(module)]
    found: dict[Any, Any] = {module: partial(_lora, casts) for module in plain}
    found |= {m: partial(_feed_forward, casts, layers) for m in model.modules() if (layers := projections(m, plain))}
    found |= {m: partial(_norm, epsilon) for m, epsilon in plain_norms(model, FULL).items()}
    for module, forward in found.items():
        module.forward = partial(forward, module, module.forward)
    try:
        yield
    finally:
        for module in found:
            del module.forward


def _lora_of(casts: _Casts, layer: Any, dtype: torch.dtype) -> Lora | None:
    """The tensors of a layer for products in ``dtype``, or None if it does not support them."""
    weight = layer.get_base_layer().weight
    known = is_packed(weight) or weight.dtype in (dtype, FULL)
    if weight.requires_grad or dtype not in (FULL, HALF) or not known:
        return None
    fixed, dense = casts.weight(weight, dtype)
    return Lora(fixed, *factors_of(layer), dense)


def _lora(casts: _Casts, layer: Any, otherwise: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    dtype, bias = precision(x), layer.get_base_layer().bias
    side = _lora_of(casts, layer, dtype)
    if side is None:
        return otherwise(x)
    x = casts.input(x, dtype)
    if layer.disable_adapters:
        weight = side.dense(side.weight) if side.dense else side.weight
        return F.linear(x, weight, None if bias is None else bias.to(dtype))
    return adapted(x, bias, *side)


def _feed_forward(
    casts: _Casts, layers: list[Any], block: Any, otherwise: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    dtype = precision(x)
    sides = [_lora_of(casts, layer, dtype) for layer in layers if not layer.disable_adapters]
    found = [side for side in sides if side]
    return gated(casts.input(x, dtype), found) if len(found) == len(layers) else otherwise(x)


def _norm(epsilon: float, module: Any, otherwise: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
    if {hidden_states.dtype, module.weight.dtype} - {FULL, HALF}:
        return otherwise(hidden_states)
    return _rms_norm(hidden_states, module.weight, epsilon)


class _Casts:
    """Casts fixed weights, and the input that several layers share, to the precision of the products only once: under
    autocast and over 4-bit weights."""

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._weights: dict[int, Tensor] = {}
        self._input: tuple[Any, Tensor] | None = None

    def __reduce__(self) -> Any:
        return _Casts, (self._keeps,)  # another process makes its own

    def weight(self, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
        """A weight to keep for the backward pass, and a function that converts it to ``dtype`` (None if it has it)."""
        if is_packed(weight):
            return weight, partial(_unpacked, weight.quant_state, dtype)  # type: ignore[attr-defined]
        if weight.dtype == dtype:
            return weight, None
        if not self._keeps:
            return weight, partial(_cast, dtype)
        if id(weight) not in self._weights:
            self._weights[id(weight)] = weight.detach().to(dtype)
        return self._weights[id(weight)], None

    def input(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.dtype == dtype:
            return x
        if self._input is None or not self._input[0](x):
            self._input = partial(_is_same, weakref.ref(x), x._version, torch.is_grad_enabled()), x.to(dtype)
        return self._input[1]


def _unpacked(state: Any, dtype: torch.dtype, packed: Tensor) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(packed, state).to(dtype)


def _cast(dtype: torch.dtype, weight: Tensor) -> Tensor:
    return weight.detach().to(dtype)


def _is_same(last: Callable[[], Tensor | None], version: int, learns: bool, x: Tensor) -> bool:
    return last() is x and x._version == version and torch.is_grad_enabled() == learns


class _RmsNorm(Function):
    """x (..., D) -> w x / sqrt(mean(x^2) + epsilon), computed in fp32."""

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
