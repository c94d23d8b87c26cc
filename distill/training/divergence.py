"""Divergence from a teacher over whole distributions instead of sampled tokens: generalised JSD (GKD).

It is a `distill.training.forward.Pass`, like `score_tokens`. Hidden states of student and teacher are picked where a
label exists, and both heads run in chunks that are recomputed in the backward pass, so the full logits of neither ever
exist. With ``top_k`` the vocabulary is coarsened, token by token, to the teacher's k likeliest tokens and one bucket
for all others. That is a divergence too: never above that of the whole vocabulary, and equal to it if k is its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.training.forward import Pack, TokenScores, causal_lm, in_chunks, states


@dataclass(frozen=True)
class NegativeDivergence:
    """Minus the divergence of the student from ``teacher`` at each supervised token, in nats, differentiable.

    ``beta`` 0 is the forward KL(teacher, student), 1 the reverse KL, anything in between the generalised Jensen-Shannon
    divergence (Agarwal et al. 2023, eq. 1, https://arxiv.org/abs/2306.13649). Both models are taken at ``temperature``.
    """

    teacher: Any
    beta: float = 0.5
    top_k: int | None = None
    temperature: float = 1.0

    def __call__(self, model: Any, batch: Pack, temperature: float = 1.0, entropy: bool = False) -> TokenScores:
        ours = states(model, batch)
        with torch.no_grad():
            theirs = states(self.teacher, batch)
        head, teacher_head = causal_lm(model).get_output_embeddings(), causal_lm(self.teacher).get_output_embeddings()

        def of(own: Tensor, other: Tensor) -> tuple[Tensor]:
            p, q = (x.float() / (self.temperature * temperature) for x in (head(own), teacher_head(other)))
            width = min(p.shape[-1], q.shape[-1])  # the surplus of the wider head is padding
            p, q = coarsened(p[:, :width].log_softmax(-1), q[:, :width].log_softmax(-1), self.top_k)
            return (-generalised_jsd(p, q, self.beta),)

        return TokenScores(*in_chunks(of, head.weight.shape[0] + teacher_head.weight.shape[0], ours, theirs))


def generalised_jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Log-probabilities (L, V) of both -> divergence (L,). At beta 0 and 1 it is the limit, scaled to be a KL."""
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def coarsened(student: Tensor, teacher: Tensor, top_k: int | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities (L, V) of the teacher's ``top_k`` tokens and of all the others together, (L, k + 1)."""
    if top_k is None or top_k >= teacher.shape[-1]:
        return student, teacher
    chosen = teacher.topk(top_k, -1).indices
    others = torch.zeros_like(teacher, dtype=torch.bool).scatter(-1, chosen, True)

    def of(logprobs: Tensor) -> Tensor:
        rest = logprobs.masked_fill(others, -math.inf).logsumexp(-1, keepdim=True)
        return torch.cat([logprobs.gather(-1, chosen), rest], -1)

    return of(student), of(teacher)
