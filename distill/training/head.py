"""Log-probabilities of labels from hidden states, through a frozen output head, without keeping logits.

With a large vocabulary the head costs more than the network below it. Its logits are computed in tiles that stay in
cache, and the softmax is summed on the way (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867). A label's
log-probability depends only on its own hidden state, so its gradient there, W[label] - softmax(W h) W, is formed
in the same pass and only scaled in the backward pass: two matrix products in all, where recomputing takes three. The
label's own term of the sum is combined with W[label] exactly: where p is near 1 the two nearly cancel, and the
difference would be less than the sum's rounding.

This is for plain linear heads that are not trained; all others go through autograd (`distill.training.forward`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

ROWS, WIDTH = 512, 2048
"""The shape of a tile of logits on CPU: 4 MB."""
MANY_ROWS = 8192
"""Rows of a tile on a GPU, where small tiles gain nothing; fewer rows get wider tiles."""


def is_plain(head: Any) -> bool:
    """Whether `through` can replace ``head``."""
    if type(head) is not nn.Linear or "forward" in vars(head) or head.bias is not None or head.weight.requires_grad:
        return False
    return head.weight.dtype in (torch.float32, torch.bfloat16)


class _Through(Function):
    """hidden (L, D), weight (V, D), targets (L,) -> log softmax(weight hidden / temperature) at the targets, (L,), and
    with ``entropy`` the entropy of the softmax, (L,), without gradient. Products are computed in ``dtype``, the rest in
    fp32."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        learns = ctx.needs_input_grad[0]
        scaled = (hidden / temperature if temperature != 1 else hidden).to(dtype)
        size = ROWS if hidden.device.type == "cpu" else MANY_ROWS
        found, entropies, back = [], [], []
        for states, labels in zip(torch.split(scaled, size), torch.split(targets, size), strict=True):
            softmax = _softmax(states, weight, labels, learns, entropy)
            found.append(softmax.logprob)
            entropies.append(softmax.entropy)
            if learns:
                others = -torch.expm1(softmax.logprob).unsqueeze(-1)
                back.append(weight.index_select(0, labels) * others - softmax.mixed)
        ctx.save_for_backward(*([torch.cat(back).div_(temperature)] if back else []))
        if not entropy:
            return (torch.cat(found),)
        spread = torch.cat(entropies)
        ctx.mark_non_differentiable(spread)
        return torch.cat(found), spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return back * grads[0].unsqueeze(-1), None, None, None, None, None


class _Softmax(NamedTuple):
    """For R rows of logits, in fp32: the label's log-probability, (R,); and if asked for, the softmax's entropy, (R,),
    and the mean of ``weight`` under it without the label's term, (R, D)."""

    logprob: Tensor
    entropy: Tensor
    mixed: Tensor


def _softmax(states: Tensor, weight: Tensor, labels: Tensor, mix: bool, entropy: bool) -> _Softmax:
    """Sums are kept relative to e^top and in fp64, not as logarithms. Otherwise each of many tiles that hold next to
    nothing would be lost in the rounding of a number as large as the logits, and with them everything that is learned
    where p is near 1."""
    top = states.new_full((len(states), 1), -math.inf, dtype=torch.float32)
    label, spread, total = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top, dtype=torch.float64)
    mixed = torch.zeros_like(states).float()
    width = WIDTH if states.device.type == "cpu" else WIDTH * max(1, MANY_ROWS // max(1, len(states)))
    tile = states.new_empty(len(states) * min(width, len(weight)))
    for start in range(0, len(weight), width):
        part = weight[start : start + width].to(states.dtype)
        logits = _logits(states, part, tile).float()
        place = (labels - start).unsqueeze(-1)
        here = (place >= 0) & (place < len(part))
        at = place.clamp(0, len(part) - 1)
        label = torch.where(here, logits.gather(1, at), label)
        highest = logits.amax(-1, keepdim=True)
        shares = torch.softmax(logits, -1) if entropy else torch.softmax(logits, -1, out=logits)
        own = shares.amax(-1, keepdim=True).reciprocal_()  # sum of e^(logit - highest): the largest share is 1 over it
        before, top = top, torch.maximum(top, highest)
        kept, new = total.mul_((before - top).exp_()), own.double().mul_((highest - top).exp_())
        total = kept + new
        fall, rise = kept.div_(total).float(), new.div_(total).float()
        if entropy:  # the entropy over the tiles, and those within them
            within = own.log().sub_(torch.linalg.vecdot(shares, logits.sub_(highest)).unsqueeze(-1))
            spread.mul_(fall).addcmul_(within, rise).add_(torch.special.entr(fall)).add_(torch.special.entr(rise))
        if mix:
            shares.scatter_(1, at, shares.gather(1, at).masked_fill_(here, 0.0))
            mixed.mul_(fall).addcmul_(shares.to(part.dtype) @ part, rise)
    logprob = (label - top).sub_(total.log_())
    return _Softmax(logprob.squeeze(-1), spread.squeeze(-1), mixed)


def _logits(states: Tensor, part: Tensor, tile: Tensor) -> Tensor:
    """states (R, D), part (W, D) -> (R, W), written into ``tile`` unless oneDNN computes it. oneDNN's fp32 product is a
    tenth faster than that of the BLAS under torch (MKL, measured on AMD), but it builds a kernel for each new shape, so
    it gets full tiles only."""
    full = (len(states), len(part)) == (ROWS, WIDTH) and states.dtype == torch.float32
    if _one_dnn and full and states.device.type == "cpu":
        made: Tensor = _one_dnn(states, part, None, "none", [], "")
        return made
    return torch.mm(states, part.t(), out=tile[: len(states) * len(part)].view(len(states), -1))


_one_dnn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
through: Callable[..., tuple[Tensor, ...]] = _Through.apply
