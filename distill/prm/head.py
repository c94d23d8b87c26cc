"""The head of a process reward model, and the one pass that training and scoring share.

The logit of a step is linear in the body's last hidden state at the step's last token and, where so built, in the
log-likelihood that the body gives the step's own tokens (white space and tags before it included):

    logit = w . h + b + c log p(step | what came before)

The second term is what a body that can solve the problems knows already: it makes a teacher a judge of lines within
a few updates, where the first has to learn to compare what is written with what should be. It says little where a
right step has many wordings; then w and b have to do the work, and `likelihood: false` leaves it out.

Learned by cross-entropy, hard or soft labels, through `distill.training` as it is: `fitness` is a
`distill.training.forward.Pass`. Left out: heads of several layers, pairwise losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.prm.examples import StepExample
from distill.training.forward import Pack, Told, causal_lm, of_states, pack, states

NAME = "step_head"
"""The attribute of the network that holds the head, and so the beginning of its parameters' names."""
PRIOR = 2.0
"""The log-odds of a step before anything is learned: most are right."""


class StepHead(nn.Module):
    def __init__(self, width: int, likelihood: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.full((1,), PRIOR))
        self.likelihood = nn.Parameter(torch.ones(1)) if likelihood else None

    def forward(self, hidden: Tensor, likelihood: Tensor | None) -> Tensor:
        """Hidden states (S, D) at the ends of steps and log-likelihoods (S,) of them -> logits (S,)."""
        logits: Tensor = hidden.float() @ self.weight + self.bias
        return logits if self.likelihood is None or likelihood is None else logits + self.likelihood * likelihood


def attach(network: Any, likelihood: bool) -> StepHead:
    """Give a causal LM (a peft model, too) a fresh head."""
    head = StepHead(causal_lm(network).config.hidden_size, likelihood).to(next(network.parameters()).device)
    setattr(network, NAME, head)
    return head


def detach(network: Any) -> StepHead:
    """Take the head off again, so that the body can be saved as the causal LM that it is."""
    head: StepHead = getattr(network, NAME)
    delattr(network, NAME)
    return head


def step_logits(network: Any, examples: Sequence[StepExample]) -> list[Tensor]:
    """For each row the logits of all its steps (S,), labelled or not; one packed pass."""
    head: StepHead = getattr(network, NAME)
    every = head.likelihood is not None
    rows = [replace(row, labels_mask=_wanted(row, every)) for row in examples]
    batch = pack(rows, next(network.parameters()).device)
    hidden = states(network, batch)
    sizes = [row.supervised for row in rows]
    logprobs = torch.split(of_states(network, hidden, batch.targets)[0], sizes) if every else [None] * len(rows)
    return [
        _logits(head, row, every, part, own)
        for row, part, own in zip(examples, torch.split(hidden, sizes), logprobs, strict=True)
    ]


def _wanted(row: StepExample, every: bool) -> tuple[bool, ...]:
    """Which tokens a pass has to predict: all up to the last step's end and the one after it, or those after ends."""
    after = {end + 1 for end in row.ends}
    last = max(after)
    return tuple((row.start <= t <= last) if every else t in after for t in range(len(row.input_ids)))


def _logits(head: StepHead, row: StepExample, every: bool, hidden: Tensor, logprobs: Tensor | None) -> Tensor:
    if not every or logprobs is None:
        order = {end: n for n, end in enumerate(sorted(set(row.ends)))}
        return head(hidden[[order[end] for end in row.ends]], None)
    # Token t is predicted at place t - start; the state at a step's last token predicts the one after it.
    before = [row.start, *(end + 1 for end in row.ends[:-1])]
    sums = [logprobs[a - row.start : b + 1 - row.start].sum() for a, b in zip(before, row.ends, strict=True)]
    return head(hidden[[end + 1 - row.start for end in row.ends]], torch.stack(sums))


def fitness(network: Any, batch: Pack, temperature: float = 1.0, entropy: bool = False) -> Told:
    """The log-probability that the head gives each step's label (L,), minus its cross-entropy."""
    rows = [row for row in batch.examples if isinstance(row, StepExample)]
    logits = torch.cat([part[list(row.learned)] for row, part in zip(rows, step_logits(network, rows), strict=True)])
    labels = torch.tensor([row.labels[k] for row in rows for k in row.learned], device=logits.device)
    return Told(-F.binary_cross_entropy_with_logits(logits / temperature, labels, reduction="none"))
