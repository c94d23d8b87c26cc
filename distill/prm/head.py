"""The head of a process reward model, and the forward pass that training and scoring share.

The logit of a step is linear in the body's last hidden state at the step's last token. Optionally it is also linear in
the log-likelihood that the body gives the step's own tokens (including white space and tags before it):

    logit = w . h + b + c log p(step | what came before)

The likelihood term uses what a body that can solve the problems already knows. With it a teacher becomes a judge of
lines within a few updates, whereas w must first learn to compare what is written with what should be. The likelihood
says little if a right step has many wordings. Then w and b have to do the work, and `likelihood: false` leaves the term
out.

The head is trained by cross-entropy with hard or soft labels, through `distill.training`: `fitness` is a
`distill.training.forward.Pass`. Left out: heads of several layers, pairwise losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.prm.examples import StepExample
from distill.tensors import put
from distill.training.batching import micro_batches
from distill.training.forward import Pack, TokenScores, causal_lm, pack, score_states, states
from distill.training.passes import in_order

NAME = "step_head"
"""The attribute of the network that holds the head, and therefore the prefix of its parameters' names."""
PRIOR = 2.0
"""The initial log-odds of a step. Most steps are right."""


class StepHead(nn.Module):
    def __init__(self, width: int, likelihood: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.full((1,), PRIOR))
        self.likelihood = nn.Parameter(torch.ones(1)) if likelihood else None

    def forward(self, hidden: Tensor, likelihood: Tensor | None) -> Tensor:
        """Logits (S,) from hidden states (S, D) at the ends of steps and log-likelihoods (S,); always in fp32."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits: Tensor = hidden.float() @ self.weight + self.bias
        return logits if self.likelihood is None or likelihood is None else logits + self.likelihood * likelihood


def attach(network: Any, likelihood: bool) -> StepHead:
    """Attach a new head to a causal LM, which may be a peft model."""
    width, device = causal_lm(network).config.get_text_config().hidden_size, next(network.parameters()).device
    head = StepHead(width, likelihood).to(device)
    setattr(network, NAME, head)
    return head


def detach(network: Any) -> StepHead:
    """Remove the head, so that the body can be saved as a plain causal LM."""
    head: StepHead = getattr(network, NAME)
    delattr(network, NAME)
    return head


def step_logits(network: Any, examples: Sequence[StepExample]) -> list[Tensor]:
    """The logits (S,) of all steps of each row, labelled or not, in one packed pass."""
    head: StepHead = getattr(network, NAME)
    every, device = head.likelihood is not None, next(network.parameters()).device
    rows = [replace(row, labels_mask=_wanted(row, every)) for row in examples]
    batch = pack(rows, device)
    hidden = states(network, batch)
    begins, ends = (put(places, device) for places in _places(rows))
    sums = None
    if every:
        so_far = F.pad(score_states(network, hidden, batch.targets)[0].double().cumsum(0), (1, 0))
        sums = (so_far.index_select(0, ends) - so_far.index_select(0, begins)).float()
    return list(head(hidden.index_select(0, ends), sums).split([len(row.ends) for row in rows]))


def _wanted(row: StepExample, every: bool) -> tuple[bool, ...]:
    """The tokens that a pass predicts: with ``every``, all of the response up to the one after the last step;
    otherwise only those right after the ends of steps."""
    after = {end + 1 for end in row.ends}
    last = max(after)
    return tuple((row.start <= t <= last) if every else t in after for t in range(len(row.input_ids)))


def _places(rows: Sequence[StepExample]) -> tuple[list[int], list[int]]:
    """The places of all steps among the predicted tokens: where each step's tokens begin, and the token after the step,
    which the state at the step's last token predicts. The first token of a row is not predicted and does not count."""
    begins, ends, at = [], [], 0
    for row in rows:
        place = {t: n for n, t in enumerate((t for t, asked in enumerate(row.labels_mask) if asked and t), at)}
        begins += [place.get(begin, at) for begin in (row.start, *(end + 1 for end in row.ends[:-1]))]
        ends += [place[end + 1] for end in row.ends]
        at += len(place)
    return begins, ends


def fitness(network: Any, batch: Pack, temperature: float = 1.0, entropy: bool = False) -> TokenScores:
    """The log-probability (L,) that the head gives each label, which is the negative of its cross-entropy."""
    rows = [row for row in batch.examples if isinstance(row, StepExample)]
    labels = [label for row in rows for label in row.labels]
    learned = [k for k, label in enumerate(labels) if label is not None]
    every = torch.cat(step_logits(network, rows))
    logits, targets = every.index_select(0, put(learned, every.device)), put([labels[k] for k in learned], every.device)
    return TokenScores(-F.binary_cross_entropy_with_logits(logits / temperature, targets, reduction="none"))


@torch.no_grad()
def probabilities(
    network: Any, rows: Sequence[StepExample], micro_batch_tokens: int, sure: float = inf
) -> list[list[float]]:
    """The probability of every step of each row, labelled or not. Log-odds are clamped to ±``sure``."""
    runs = micro_batches(rows, micro_batch_tokens)
    logits = [torch.cat(step_logits(network, [rows[i] for i in run])) for run in runs]
    scored = [torch.sigmoid(part.double().clamp(-sure, sure)) for part in logits]
    return in_order(scored, runs, [len(row.ends) for row in rows])
