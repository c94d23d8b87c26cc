"""A LoRA layer written out: forward and backward of x (W + s B A)^T for a fixed W.

W + s B A is formed once per micro-batch and the tokens pass through one product instead of three, forward and
backward. The gradients of A and B come from that of W where it is about as small, from the tokens times the other
factor where it is not; then W + s B A is formed again rather than kept. Which layers of a model these are is
`distill.training.lean`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

SMALL = 4
"""The gradient of W is taken where in * out <= SMALL r (in + out): equal operations at 2, larger products."""


class Lora(NamedTuple):
    """``weight`` (out, in), fixed; ``a`` (r, in) and ``b`` (out, r), trained."""

    weight: Tensor
    a: Tensor
    b: Tensor
    scaling: float

    @property
    def small(self) -> bool:
        return self.weight.numel() <= SMALL * len(self.a) * sum(self.weight.shape)

    def folded(self) -> Tensor:
        return torch.addmm(self.weight, self.b, self.a, alpha=self.scaling)


class Factors:
    """The gradients of A and B, added up over tiles of tokens."""

    def __init__(self, lora: Lora) -> None:
        self.lora = lora
        self._sums: list[Tensor] = []

    def add(self, x: Tensor, g: Tensor) -> None:
        """Tokens ``x`` (n, in), and the gradient ``g`` (n, out) of what the layer made of them."""
        if self.lora.small:
            self._sum((g.t(), x))
        else:  # g.t() @ (x @ a.t()) is slower by half
            self._sum(((g @ self.lora.b).t(), x), ((x @ self.lora.a.t()).t(), g))

    def _sum(self, *products: tuple[Tensor, Tensor]) -> None:
        if self._sums:
            for total, pair in zip(self._sums, products, strict=True):
                total.addmm_(*pair)
        else:
            self._sums = [torch.mm(*pair) for pair in products]

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of A (r, in) and B (out, r)."""
        for total in self._sums:
            total.mul_(self.lora.scaling)
        if self.lora.small:
            (whole,) = self._sums
            return self.lora.b.t() @ whole, whole @ self.lora.a.t()
        to_a, to_b = self._sums
        return to_a, to_b.t()


def can_fold(layer: Any) -> bool:
    """Whether this LoRA layer of peft is no more than that, in full precision."""
    base = layer.get_base_layer()
    if type(base) is not nn.Linear or base.weight.dtype != torch.float32 or layer.merged or layer.lora_variant:
        return False
    return len(layer.active_adapters) == 1 and isinstance(layer.lora_dropout[layer.active_adapters[0]], nn.Identity)


def lora_of(layer: Any) -> Lora:
    name = layer.active_adapters[0]
    factors = layer.lora_A[name].weight, layer.lora_B[name].weight
    return Lora(layer.get_base_layer().weight, *factors, layer.scaling[name])


class _Folded(Function):
    """x (..., in) to x (W + s B A)^T + bias (..., out), for fixed W and bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        lora = Lora(weight, a, b, scaling)
        folded = lora.folded()
        ctx.save_for_backward(x, weight, a, b, *([folded] if lora.small else []))
        ctx.scaling = scaling
        return F.linear(x, folded, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, *kept = ctx.saved_tensors
        lora, g = Lora(weight, a, b, ctx.scaling), grads[0].flatten(0, -2)
        back = None
        if ctx.needs_input_grad[0]:
            back = (g @ (kept[0] if kept else lora.folded())).view(*grads[0].shape[:-1], -1)
        factors = Factors(lora)
        factors.add(x.flatten(0, -2), g)
        return back, None, None, *factors.gradients(), None


folded: Callable[..., Tensor] = _Folded.apply
