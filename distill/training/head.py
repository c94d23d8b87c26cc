"""Log-probabilities of labels from hidden states, through a frozen output head, with no logits kept.

With a large vocabulary the head costs more than the network under it. Its logits are made in tiles that stay in
cache, and the softmax is summed as it goes (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867). A label's
log-probability depends on its own hidden state alone, so its gradient there, W[label] - softmax(W h) W, is formed
in the same pass and only scaled in the backward one: two matrix products in all, where recomputing takes three.

Full precision and plain linear heads that are not trained; all others go through autograd
(`distill.training.forward`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

ROWS, WIDTH = 512, 2048
"""A tile of logits: 4 MB."""


def is_plain(head: Any, hidden: Tensor) -> bool:
    """Whether `through` may stand in for ``head`` on ``hidden``."""
    if type(head) is not nn.Linear or "forward" in vars(head) or head.bias is not None or head.weight.requires_grad:
        return False
    full = head.weight.dtype == hidden.dtype == torch.float32
    return full and not torch.is_autocast_enabled(hidden.device.type)


class _Through(Function):
    """hidden (L, D), weight (V, D), targets (L,) to log softmax(weight hidden / temperature) at the targets, (L,), and
    where asked the entropy of the softmax, (L,), which has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, ...]:
        learns = ctx.needs_input_grad[0]
        scaled = hidden / temperature if temperature != 1 else hidden
        found, entropies, back = [], [], []
        for states, labels in zip(torch.split(scaled, ROWS), torch.split(targets, ROWS), strict=True):
            own = weight.index_select(0, labels)
            total, mixed = _normaliser(states, weight, learns or entropy)
            found.append(torch.linalg.vecdot(states, own) - total)
            if entropy:  # log sum exp less the mean logit, which is that of the mean weight
                entropies.append(total - torch.linalg.vecdot(states, mixed))
            if learns:
                back.append(own.sub_(mixed))
        ctx.save_for_backward(*([torch.cat(back).div_(temperature)] if back else []))
        if not entropy:
            return (torch.cat(found),)
        spread = torch.cat(entropies)
        ctx.mark_non_differentiable(spread)
        return torch.cat(found), spread

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return back * grads[0].unsqueeze(-1), None, None, None, None


def _normaliser(states: Tensor, weight: Tensor, mix: bool) -> tuple[Tensor, Tensor]:
    """log sum exp of the logits of ``states`` (R, D), (R,); and the softmax's mean of ``weight``, (R, D), if asked."""
    top, total = states.new_full((len(states), 1), -math.inf), states.new_zeros(len(states), 1)
    mixed = torch.zeros_like(states)
    tile = states.new_empty(len(states) * min(WIDTH, len(weight)))
    for part in torch.split(weight, WIDTH):
        logits = torch.mm(states, part.t(), out=tile[: len(states) * len(part)].view(len(states), -1))
        before, top = top, torch.maximum(top, logits.amax(-1, keepdim=True))
        fall = (before - top).exp_()
        logits.sub_(top).exp_()
        total = total.mul_(fall).add_(logits.sum(-1, keepdim=True))
        if mix:
            mixed.mul_(fall).addmm_(logits, part)
    return (top + total.log()).squeeze(-1), mixed.div_(total)


through: Callable[[Tensor, Tensor, Tensor, float, bool], tuple[Tensor, ...]] = _Through.apply
