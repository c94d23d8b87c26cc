"""The policy-gradient loss, term by term. Pure functions on the response tokens of a packed micro-batch.

Every tensor is flat, (L,), one entry per token. ``rows`` (L,) is the number of the response that each token belongs
to; any numbers will do, because the tokens of a response are adjacent.
The `token_weights`, computed once for the whole optimizer step, combine tokens into rows and rows into a
step: ``loss = (weights * terms).sum()`` has the same gradient over any cut into micro-batches. A response
is never split between micro-batches, so sequence means are whole.

Symbols: mu is the policy that sampled (the engine), old the trainer's policy at that time, rho = exp(logp - logp_old).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.errors import InputError
from rl.clips import CLIPS

Level = Literal["token", "sequence"]
RatioLevel = Literal["token", "sequence", "sequence_token"]
Estimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["row_mean", "token_mean", "constant", "micro_batch_mean"]


@dataclass(frozen=True, slots=True)
class EngineCorrection:
    """Importance weights c = exp(logp_old - logp_mu) for an engine whose numerics differ from the trainer's.

    ``truncate`` clamps c into [low, high] (TIS), ``mask`` sets it to 0 outside (IcePop). Weights are per token by
    default, because the product over a long chain of thought is nearly always close to zero (a gap of 0.012
    nats leaves a median weight of 0.03 at 32k tokens). ``level`` sequence uses that product.
    """

    how: Literal["truncate", "mask", "none"] = "truncate"
    level: Level = "token"
    low: float = 0.0
    high: float = 2.0


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The loss to minimise, as an `Objective` of `distill.training.passes`.

    ``clip``: -min(rho A, clip(rho, 1 - low, 1 + high) A) (PPO; high > low is DAPO's clip-higher, ``cap``
    bounds rho first: two-sided clipping, INTELLECT-2). ``cispo``: -sg(min(rho, high)) A logp (MiniMax-M1).
    ``level`` sequence takes the mean log-ratio of a response for all of its tokens (GSPO), so credit that differs
    between its tokens is spread over all of them; sequence_token has the same ratios, but each token has its own
    gradient (GSPO-token). ``kl`` weighs an estimate of KL(policy, reference), multiplied by rho if ``kl_corrected``
    (the gradient of k1 and k3 is then unbiased, DeepSeek-V3.2).

    Streams: ``advantage``, ``engine`` (logp_mu), ``weight``, ``row``; ``old`` unless the old policy is the
    current one; ``reference`` if ``kl`` > 0.
    """

    objective: Literal["clip", "cispo"] = "clip"
    level: RatioLevel = "token"
    clip_low: float = 0.2
    clip_high: float = 0.28
    clip_cap: float | None = None
    correction: EngineCorrection = EngineCorrection()
    kl: float = 0.0
    estimator: Estimator = "k3"
    kl_corrected: bool = False

    def __post_init__(self) -> None:
        if self.clip_cap is not None and self.clip_cap <= 1 + self.clip_high:
            raise InputError(f"clip_cap ({self.clip_cap}) must be above 1 + clip_high ({self.clip_high})")

    def __call__(self, logprobs: Tensor, streams: Mapping[str, Tensor]) -> Tensor:
        rows, advantages = streams["row"], streams["advantage"]
        old = streams.get("old", logprobs.detach())
        rho = ratio(logprobs, old, rows, self.level)
        if self.objective == "cispo":
            terms = -rho.detach().clamp(max=self.clip_high) * advantages * logprobs
        else:
            terms = clipped(rho, advantages, self.clip_low, self.clip_high, self.clip_cap)
        terms = terms * engine_weights(old, streams["engine"], rows, self.correction)
        if self.kl:
            divergence = kl_estimate(logprobs, streams["reference"], self.estimator)
            terms = terms + self.kl * (divergence * rho if self.kl_corrected else divergence)
        return (streams["weight"] * terms).sum()


RECIPES: Mapping[str, tuple[PolicyLoss, Aggregation]] = {
    # DeepSeekMath, eq. 3, https://arxiv.org/abs/2402.03300
    "grpo": (PolicyLoss("clip", "token", *CLIPS["grpo"]), "row_mean"),
    # https://arxiv.org/abs/2503.14476
    "dapo": (PolicyLoss("clip", "token", *CLIPS["dapo"]), "token_mean"),
    # https://arxiv.org/abs/2503.20783
    "dr_grpo": (PolicyLoss("clip", "token", *CLIPS["dr_grpo"]), "constant"),
    # TRL's name for the mean of a local batch
    "bnpo": (PolicyLoss("clip", "token", *CLIPS["bnpo"]), "micro_batch_mean"),
    # https://arxiv.org/abs/2507.18071
    "gspo": (PolicyLoss("clip", "sequence", *CLIPS["gspo"]), "row_mean"),
    # https://arxiv.org/abs/2506.13585
    "cispo": (PolicyLoss("cispo", "token", *CLIPS["cispo"]), "token_mean"),
}
"""Published losses with their usual clips, and how each aggregates tokens."""


def row_mean(values: Tensor, rows: Tensor) -> Tensor:
    """Each token's value replaced by the mean over its row, differentiable."""
    places = _places(rows)
    means = _sums(values, places) / _sums(torch.ones_like(values), places).clamp(min=1)
    return means.index_select(0, places)


def _places(rows: Tensor) -> Tensor:
    """Rows numbered in order of appearance, from 0. Their number is never read, because that would wait for a GPU."""
    return rows.diff(prepend=rows[:1]).ne(0).cumsum(0)


def _sums(values: Tensor, places: Tensor) -> Tensor:
    """(L,) -> (L,): the sum over each row, at its place; zeros after the last, for no row is without a token."""
    return torch.zeros_like(values).index_add(0, places, values)


def ratio(logprobs: Tensor, old: Tensor, rows: Tensor, level: RatioLevel = "token") -> Tensor:
    """rho per token: exp(logp - logp_old), or exp of its mean over the row; for sequence_token sg(that) p / sg(p)
    (https://arxiv.org/abs/2507.18071, section 4.3). On-policy it is 1, with a gradient."""
    difference = logprobs - old
    if level == "token":
        return difference.exp()
    whole = row_mean(difference, rows).exp()
    return whole if level == "sequence" else whole.detach() * (logprobs - logprobs.detach()).exp()


def clipped(rho: Tensor, advantages: Tensor, low: float, high: float, cap: float | None = None) -> Tensor:
    """-min(min(rho, cap) A, clip(rho, 1 - low, 1 + high) A)."""
    bounded = rho.clamp(1 - low, 1 + high)
    free = rho if cap is None else rho.clamp(max=cap)
    return -torch.min(free * advantages, bounded * advantages)


def engine_ratios(old: Tensor, engine: Tensor, rows: Tensor, level: Level = "token") -> Tensor:
    """exp(logp_old - logp_mu) per token, or its product over the row, before correction. Without gradient."""
    gap = old.detach() - engine
    if level == "sequence":
        places = _places(rows)
        gap = _sums(gap, places).index_select(0, places)
    return gap.exp()


def engine_weights(old: Tensor, engine: Tensor, rows: Tensor, correction: EngineCorrection) -> Tensor:
    """The weights of `EngineCorrection`, per token, without gradient."""
    if correction.how == "none":
        return torch.ones_like(engine)
    weights = engine_ratios(old, engine, rows, correction.level)
    if correction.how == "truncate":
        return weights.clamp(correction.low, correction.high)
    return torch.where((weights >= correction.low) & (weights <= correction.high), weights, 0.0)  # inf * 0 is NaN


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: Estimator = "k3") -> Tensor:
    """Schulman's estimates of KL(policy, reference) from samples of the policy, d = ref - logp.

    k1: -d, unbiased. k2: d^2 / 2, low variance. k3: exp(d) - d - 1, unbiased and positive. In a loss they are
    differentiated, which is another matter: the gradient of k1 is 0 on average, that of k2 is the gradient of the
    divergence, and that of k3 is the gradient of the forward KL(reference, policy). Multiplied by rho, k1 and k3 have
    the gradient of the divergence (https://arxiv.org/abs/2510.01555).
    """
    difference = reference - logprobs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    return difference.exp() - difference - 1


def token_weights(
    lengths: Sequence[int], aggregation: Aggregation, *, longest: int, micro_batches: Sequence[Sequence[int]],
    sampled: float | None = None,
) -> list[float]:  # fmt: skip
    """The weight of each row's tokens in the loss of one optimizer step. ``lengths`` count response tokens.

    row_mean: the mean over rows of each row's mean. token_mean: the mean over all tokens of the step. constant: the sum
    over tokens / (``sampled`` * ``longest``), where ``longest`` is the longest response allowed (no length bias) and
    ``sampled`` (None: the number of ``lengths``) also counts rows that are not learned from: a divisor that depended on
    which rows are would weigh steps by their outcome. micro_batch_mean: the mean over ``micro_batches`` (row indices)
    of each one's token mean; the only one that depends on the cut.
    """
    rows = len(lengths)
    if aggregation == "row_mean":
        return [1 / (rows * length) for length in lengths]
    if aggregation == "constant":
        return [1 / ((rows if sampled is None else sampled) * longest)] * rows
    if aggregation == "token_mean":
        return [1 / sum(lengths)] * rows
    weights = [0.0] * rows
    for micro in micro_batches:
        for row in micro:
            weights[row] = 1 / (len(micro_batches) * sum(lengths[r] for r in micro))
    return weights


def clip_fractions(rho: Tensor, advantages: Tensor, policy: PolicyLoss) -> tuple[float, float]:
    """The shares of tokens whose gradient the lower and the upper clip stop. cispo stops none: there it is the share of
    tokens whose weight is bounded."""
    if not len(rho):
        return math.nan, math.nan
    if policy.objective == "cispo":
        return 0.0, (rho > policy.clip_high).double().mean().item()
    below, above = (rho < 1 - policy.clip_low) & (advantages < 0), (rho > 1 + policy.clip_high) & (advantages > 0)
    if policy.clip_cap is not None:
        above |= (rho > policy.clip_cap) & (advantages < 0)
    return below.double().mean().item(), above.double().mean().item()
