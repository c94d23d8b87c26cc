"""From judged rollouts to optimizer steps.

The only part of GRPO that knows rows, micro-batches and weights. With several updates a step, the
trainer's own log-probabilities of all rollouts are taken first, under the weights that sampled: they are
the old policy of every ratio that follows. With one update old and present are the same, and no extra
pass is made. Tokens that were not sampled (`Completion.forced`) are seen by the model and never learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.training.batching import Example
from distill.training.learner import Learner, Row, Scored
from distill.types import Completion, Problem
from pipeline.errors import InputError
from rl import loss

if TYPE_CHECKING:
    from rl.grpo import GrpoSettings


@dataclass(frozen=True, slots=True)
class Rollout:
    """Sample ``index`` of ``problem`` at ``step`` (from 1). ``reward`` None: no verifier could judge.

    ``components`` are what the reward is made of, by name. ``advantages`` has one for each token of the
    completion: credit is per token from the start. ``trained``: it takes part in the updates of this step.
    ``teacher`` are a teacher's log-probabilities of the tokens, ``steps`` the rewards of its steps, where these are
    asked for (`rl.step_credit`).
    """

    step: int
    problem: Problem
    index: int
    completion: Completion
    reward: float | None
    advantages: tuple[float, ...]
    trained: bool
    components: Mapping[str, float | None] = field(default_factory=dict)
    teacher: tuple[float, ...] = ()
    steps: tuple[float, ...] = ()

    @property
    def advantage(self) -> float:
        """The mean over the completion's tokens; an outcome reward gives them all the same."""
        if len(set(self.advantages)) > 1:
            return math.fsum(self.advantages) / len(self.advantages)
        return self.advantages[0] if self.advantages else 0.0


@dataclass(frozen=True, slots=True)
class Made:
    """What the updates of a step did, over trained tokens. ``ratio_max`` is the largest trainer-to-engine
    ratio before truncation, ``ratio_mean`` their mean, ``effective`` the effective sample size of the weights after
    it, as a share of the tokens, ``corrected`` the share of tokens whose ratio the correction changed, ``gap``
    the mean absolute difference of trainer and engine in nats; these are of the weights that sampled.
    ``kl`` and the clip fractions are of the weights just before each update."""

    norm: float = 0.0
    rate: float = 0.0
    tokens: int = 0
    kl: float = 0.0
    ratio_max: float = 1.0
    ratio_mean: float = 1.0
    effective: float = 1.0
    corrected: float = 0.0
    gap: float = 0.0
    clip_low: float = 0.0
    clip_high: float = 0.0


@dataclass(frozen=True, slots=True)
class Used:
    """That optimizer update ``update`` (from 1) learned from a rollout: ``logprobs`` are the trainer's own of its
    sampled tokens, under the weights before that update; each of them weighs ``weight`` in the loss."""

    rollout: Rollout
    update: int
    weight: float
    logprobs: Sequence[float]


def update(learner: Learner, settings: GrpoSettings, rollouts: Sequence[Rollout]) -> tuple[Made, list[Used]]:
    """``settings.updates`` optimizer steps, each on its share of the groups."""
    parts = _shares(rollouts, settings.updates)
    rows = {id(r): _row(r) for r in rollouts}
    old: dict[int, list[float]] = {}
    if settings.updates > 1 and rollouts:
        before = learner.score([rows[id(r)] for r in rollouts], settings.sampling.temperature)
        old = {id(r): values for r, values in zip(rollouts, before, strict=True)}
    made, used = [], []
    for part in parts:
        one, weights, scored = _step(learner, settings, [(rows[id(r)], old.get(id(r))) for r in part])
        made.append(one)
        used += [Used(r, learner.done, w, s.logprobs) for r, w, s in zip(part, weights, scored, strict=True)]
    return _merged(made), used


def _shares(rollouts: Sequence[Rollout], count: int) -> list[list[Rollout]]:
    """Whole groups, in order, spread over ``count`` updates."""
    names = list(dict.fromkeys(r.problem.id for r in rollouts))
    part = {name: index * count // len(names) for index, name in enumerate(names)}
    return [[r for r in rollouts if part[r.problem.id] == index] for index in range(count)]


def _row(rollout: Rollout) -> Row:
    """The rollout's sampled tokens as what is learned, with what the loss needs of each."""
    completion = rollout.completion
    forced = set(completion.forced)
    sampled = [t not in forced for t in range(len(completion.token_ids))]
    prompt = completion.prompt_ids
    example = Example(completion.key, (*prompt, *completion.token_ids), (*(False for _ in prompt), *sampled))
    engine = [p for p, kept in zip(logprobs(completion), sampled, strict=True) if kept]
    advantage = [a for a, kept in zip(rollout.advantages, sampled, strict=True) if kept]
    return Row(example, {"advantage": advantage, "engine": engine})


def logprobs(completion: Completion) -> Sequence[float]:
    """The engine's log-probability of every token of a rollout."""
    if completion.logprobs is None or len(completion.logprobs) != len(completion.token_ids):
        raise InputError(f"rollout {completion.key}: grpo needs the engine's log-probability of every token")
    return completion.logprobs


def _step(
    learner: Learner, settings: GrpoSettings, rows: list[tuple[Row, Sequence[float] | None]]
) -> tuple[Made, Sequence[float], list[Scored]]:
    """One optimizer step on ``rows``, each with its old log-probabilities if they are not the present ones. Beside
    what it did: each row's weight in the loss, and its scores."""
    if not rows:
        learner.skip()
        return Made(), [], []
    lengths = [row.example.supervised for row, _ in rows]
    weights = loss.token_weights(
        lengths,
        settings.aggregation,
        longest=settings.sampling.max_tokens,
        micro_batches=learner.cut([row.example for row, _ in rows]),
    )
    batch = []
    for index, ((row, before), length, weight) in enumerate(zip(rows, lengths, weights, strict=True)):
        streams = {**row.streams, "weight": [weight] * length, "row": [float(index)] * length}
        batch.append(Row(row.example, streams if before is None else {**streams, "old": before}))
    policy = settings.loss
    scored = learner.gradients(batch, policy, temperature=settings.sampling.temperature, reference=policy.kl > 0)
    norm, rate = learner.update()
    present = _flat([s.logprobs for s in scored])
    old = present if rows[0][1] is None else _flat([values or () for _, values in rows])
    engine, advantage, index_of = (_flat([r.streams[name] for r in batch]) for name in ("engine", "advantage", "row"))
    gap = old - engine
    weighed = loss.engine_weights(old, engine, index_of.long(), policy.correction)
    rho = loss.ratio(present, old, index_of.long(), policy.level)
    low, high = loss.clip_fractions(rho, advantage, policy.clip_low, policy.clip_high)
    reference = _flat([s.reference for s in scored])
    made = Made(
        norm=norm,
        rate=rate,
        tokens=sum(len(row.example) for row, _ in rows),
        kl=loss.kl_estimate(present, reference).mean().item() if policy.kl else 0.0,
        ratio_max=gap.max().exp().item(),
        ratio_mean=gap.exp().mean().item(),
        effective=(weighed.sum().square() / weighed.square().sum() / len(weighed)).item(),
        corrected=((weighed - gap.exp()).abs() > 1e-9).double().mean().item(),
        gap=gap.abs().mean().item(),
        clip_low=low,
        clip_high=high,
    )
    return made, weights, scored


def _flat(values: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(list(chain.from_iterable(values)), dtype=torch.float64)


MEANS = ("norm", "kl", "ratio_mean", "effective", "corrected", "gap", "clip_low", "clip_high")


def _merged(made: Sequence[Made]) -> Made:
    """One account of a step: sums of tokens, the largest ratio, means of the rest over updates that learned."""
    learned = [m for m in made if m.tokens]
    if len(learned) < 2:
        return learned[0] if learned else made[-1]

    def mean(name: str) -> float:
        return math.fsum(getattr(m, name) for m in learned) / len(learned)

    means = {name: mean(name) for name in MEANS}
    total, largest = sum(m.tokens for m in learned), max(m.ratio_max for m in learned)
    return Made(rate=learned[-1].rate, tokens=total, ratio_max=largest, **means)
