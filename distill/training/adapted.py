"""A linear layer with LoRA, forward and backward written out: x W^T + s (x A^T) B^T for a fixed W.

It is computed as one product, [x, x A^T] [W, s B]^T. In half precision, the sum of two products, each rounded, loses
most of a term that is far less than 1 / 256 of the other, such as a young adapter's; so does W + s B A. W + s B A is
formed only in full precision, where W is about as small as A and B; the gradients of A and B then come from that of
W. `distill.training.lean` decides which layers of a model are computed like this.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

SMALL = 4
"""W is small if in * out <= SMALL r (in + out). At 2, its gradient takes as many operations as those of A and B; beyond
that it still pays off, because the products are larger."""
FULL, HALF = torch.float32, torch.bfloat16


def precision(x: Tensor) -> torch.dtype:
    """The dtype of a product with ``x``, under autocast or not."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class Lora(NamedTuple):
    """``weight`` (out, in) is fixed, in the precision of the products or in a form that ``dense`` converts to it (such
    as quantised weights). ``a`` (r, in) and ``b`` (out, r) are trained, in fp32."""

    weight: Tensor
    a: Tensor
    b: Tensor
    scaling: float
    dense: Callable[[Tensor], Tensor] | None = None


class Products:
    """The products of one layer, over tiles of tokens ``x`` (n, in) and of output gradients ``g`` (n, out). The
    gradients of A and B are summed over the tiles in fp32."""

    def __init__(self, lora: Lora) -> None:
        self._scaling = lora.scaling
        self._weight = lora.dense(lora.weight) if lora.dense else lora.weight
        self.width, dtype = len(self._weight), self._weight.dtype
        self._a, self._b = lora.a.to(dtype), (lora.b * lora.scaling).to(dtype)
        few = self._weight.numel() <= SMALL * len(lora.a) * sum(self._weight.shape)
        self._whole = torch.addmm(self._weight, self._b, self._a) if few and dtype == FULL else None
        self._sums: list[Tensor] = []

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(n, in) -> (n, out)"""
        if self._whole is not None:
            return torch.mm(x, self._whole.t(), out=out)
        return torch.mm(torch.cat((x, x @ self._a.t()), 1), self._wide.t(), out=out)

    def backward(self, g: Tensor, x: Tensor, out: Tensor | None, add: bool = False) -> None:
        """Write the gradient of ``x`` into ``out`` (n, in), or with ``add`` add it; None skips it."""
        if self._whole is not None:
            self._sum(g.t() @ x)
            weight = self._whole
        else:
            low = g @ self._b
            self._sum(low.t() @ x, (x @ self._a.t()).t() @ g)  # g.t() @ (x @ a.t()) is slower by half
            if out is not None:
                g, weight = torch.cat((g, low), 1), self._tall
        if out is not None:
            out.addmm_(g, weight) if add else torch.mm(g, weight, out=out)

    @cached_property
    def _wide(self) -> Tensor:
        return torch.cat((self._weight, self._b), 1)

    @cached_property
    def _tall(self) -> Tensor:
        return torch.cat((self._weight, self._a), 0)

    def _sum(self, *parts: Tensor) -> None:
        if not self._sums:
            self._sums = [part.float() for part in parts]
        else:
            for total, part in zip(self._sums, parts, strict=True):
                total.add_(part)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """The gradients of A (r, in) and B (out, r)."""
        if self._whole is not None:
            (whole,) = self._sums
            return self._b.t() @ whole, (whole @ self._a.t()).mul_(self._scaling)
        to_a, to_b = self._sums
        return to_a, to_b.t().mul_(self._scaling)


def is_plain(module: Any) -> bool:
    """Whether this is a LoRA layer of peft over weights in full, half or 4-bit precision, without extras."""
    kind = type(module)
    if not kind.__module__.startswith("peft.tuners.lora.") or kind.__name__ not in ("Linear", "Linear4bit"):
        return False
    base, names = module.get_base_layer(), module.active_adapters
    if module.merged or module.lora_variant or len(names) != 1 or module.lora_B[names[0]].bias is not None:
        return False
    if base.bias is not None and base.bias.requires_grad:
        return False
    known = is_packed(base.weight) or (type(base) is nn.Linear and base.weight.dtype in (FULL, HALF))
    return known and isinstance(module.lora_dropout[names[0]], nn.Identity)


def is_packed(weight: Tensor) -> bool:
    """Whether this is a 4-bit weight of bitsandbytes."""
    return getattr(weight, "quant_state", None) is not None


def factors_of(layer: Any) -> tuple[Tensor, Tensor, float]:
    """A, B and the scaling of a LoRA layer of peft."""
    (name,) = layer.active_adapters
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]


class _Adapted(Function):
    """x (..., in) and the fields of a `Lora` -> x W^T + s (x A^T) B^T + bias, (..., out). The bias is fixed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, *fields: Any) -> Tensor:
        weight, a, b, *ctx.rest = fields
        ctx.save_for_backward(x, weight, a, b)
        made = Products(Lora(*fields)).forward(x.flatten(0, -2))
        if bias is not None:
            made.add_(bias)
        return made.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        products = Products(Lora(*tensors, *ctx.rest))
        back = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        g = grads[0].flatten(0, -2)
        products.backward(g, x.flatten(0, -2), None if back is None else back.view(-1, x.shape[-1]))
        return back, None, None, *products.gradients(), None, None


adapted: Callable[..., Tensor] = _Adapted.apply
