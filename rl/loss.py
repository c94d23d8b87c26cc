"""The policy-gradient loss, term by term. Pure functions; every tensor has one shape of the caller's.

Usually that shape is (B, T) with a mask of response tokens, or flat: the response tokens of a packed
micro-batch. What ties tokens into rows and rows into a step are the `token_weights`, computed once
for the whole optimizer step: then ``loss = (weights * terms).sum()`` over any cut into micro-batches
has the same gradient.

Symbols: mu sampled (engine), old is the trainer's policy when sampling, rho = exp(logp - logp_old).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["grpo", "dr_grpo", "dapo", "bnpo"]


def policy_loss(
    logprobs: Tensor, streams: Mapping[str, Tensor], *, clip_low: float, clip_high: float, engine_cap: float, kl: float
) -> Tensor:
    """The loss of GRPO with one update per batch: the old policy is the present one, detached.

    Streams: ``advantage``, ``engine`` (log-probabilities under mu), ``weight``, and with ``kl`` > 0
    ``reference``. An `Objective` of `distill.training.learner`.
    """
    old = logprobs.detach()
    terms = clipped_objective(ratio(logprobs, old), streams["advantage"], clip_low, clip_high)
    terms = terms * engine_correction(old, streams["engine"], engine_cap)
    if kl:
        terms = terms + kl * k3(logprobs, streams["reference"])
    return (streams["weight"] * terms).sum()


def ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho = exp(logp - logp_old), per token. On-policy it is 1, and carries the gradient."""
    return (logprobs - old_logprobs).exp()


def clipped_objective(rho: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) (PPO; high > low is DAPO's clip-higher)."""
    bounded = rho.clamp(1 - clip_low, 1 + clip_high)
    return -torch.min(rho * advantages, bounded * advantages)


def engine_correction(old_logprobs: Tensor, engine_logprobs: Tensor, cap: float) -> Tensor:
    """Truncated importance sampling per token: min(exp(logp_old - logp_mu), cap), no gradient.

    Corrects for an engine whose numerics differ from the trainer's. Per token, not per sequence: the
    product over a long chain of thought would weight nearly all of it to zero.
    """
    return (old_logprobs - engine_logprobs).exp().clamp(max=cap).detach()


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Schulman's unbiased, positive estimate of KL(policy, reference): exp(d) - d - 1, d = ref - logp."""
    difference = reference_logprobs - logprobs
    return difference.exp() - difference - 1


def token_weights(
    lengths: Sequence[int], aggregation: Aggregation, *, longest: int, micro_batches: Sequence[Sequence[int]]
) -> list[float]:
    """The weight of each row's tokens in the loss of one optimizer step. ``lengths`` count response tokens.

    grpo: mean over rows of each row's mean. dapo: mean over all tokens of the step. dr_grpo: sum over
    tokens / (rows * ``longest``), the longest response allowed (no length bias). bnpo: the mean over
    ``micro_batches`` (row indices) of each one's token mean; the only one that depends on the cut.
    """
    rows = len(lengths)
    if aggregation == "grpo":
        return [1 / (rows * length) for length in lengths]
    if aggregation == "dr_grpo":
        return [1 / (rows * longest)] * rows
    if aggregation == "dapo":
        return [1 / sum(lengths)] * rows
    weights = [0.0] * rows
    for micro in micro_batches:
        for row in micro:
            weights[row] = 1 / (len(micro_batches) * sum(lengths[r] for r in micro))
    return weights
