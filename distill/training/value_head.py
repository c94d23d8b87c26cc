"""A value head: the reward that a student can still expect, from the hidden state before each token.

It is one linear function of the states that the output head reads, so policy and value come out of one pass
(`distill.training.forward.tell`). It starts at zero, which is no baseline at all. It is part of the model only while
it is trained: inside `value_head` it is among the model's parameters, so the optimizer, checkpoints and other ranks
have it; a model that is sampled from, exported or served does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "value_head"


class ValueHead(nn.Module):
    """Hidden states (L, D) -> values (L,), in fp32: w h / D + b. Because of the division by D, a step of Adam moves an
    estimate by about its learning rate, whatever the model's width. With ``detached`` the gradient ends here: values do
    not change the student."""

    def __init__(self, size: int, detached: bool, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, size, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))
        self.detached = detached

    def forward(self, hidden: Tensor) -> Tensor:
        states = hidden.detach() if self.detached else hidden
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(states.float() / states.shape[-1], self.weight, self.bias).squeeze(-1)


@contextmanager
def value_head(model: Any, detached: bool) -> Iterator[None]:
    """Give ``model`` (a causal LM, with or without peft) a value head within this context."""
    head = ValueHead(model.config.get_text_config().hidden_size, detached, next(model.parameters()).device)
    setattr(model, NAME, head)
    try:
        yield
    finally:
        delattr(model, NAME)
