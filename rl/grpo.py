"""GRPO, one visible loop: sample, judge, credit, learn.

`train_grpo` knows problems, a policy engine, settings and callbacks; not stages, YAML or the store.
It is strictly on-policy: one optimizer step per batch of rollouts, so the old log-probabilities are
the trainer's own, detached, and no extra pass is made for them. A step is a function of
(settings, step, weights): sampling is keyed by (seed, request key), so a killed step is sampled again
to the same bits, or read back through ``recall``. Rollouts are handed out before the update they feed.

Left out on purpose: several updates per batch, refilling dropped groups, mixtures of rewards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch

from distill.training.batching import from_tokens
from distill.training.forward import check_packing
from distill.training.learner import BeforeSave, Learner, LearnerSettings, Row, learning, nothing, run_identity
from distill.types import Completion, Finish, Problem, Request, Sampling
from pipeline.errors import InputError, Stopped
from rl import credit, loss


class Policy(Protocol):
    """An engine that samples from the weights under training."""

    def generate(self, requests: Iterable[Request], stopping: Callable[[], bool]) -> Iterator[Completion]: ...

    def refresh(self) -> None:
        """Take up the weights as they are now."""
        ...


@dataclass(frozen=True, kw_only=True)
class GrpoSettings(LearnerSettings):
    """``group`` samples of each problem. ``kl`` is the weight of KL to the model without its adapter.

    ``engine_cap`` truncates the importance ratios between trainer and engine, per token.
    """

    steps: int
    group: int = 8
    sampling: Sampling = field(default_factory=Sampling)
    baseline: credit.Baseline = "group"
    scale: credit.Scale = "std"
    aggregation: loss.Aggregation = "dapo"
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.0
    engine_cap: float = 2.0

    def __post_init__(self) -> None:
        if self.sampling.temperature <= 0 or self.sampling.top_p < 1 or self.sampling.top_k:
            raise InputError("grpo samples with temperature > 0, top_p 1 and top_k 0: truncation biases its ratios")
        if self.group < 2:
            raise InputError("grpo compares samples of one problem: group must be at least 2")


@dataclass(frozen=True, slots=True)
class Rollout:
    """Sample ``index`` of ``problem`` at ``step`` (from 1). ``reward`` None: no verifier could judge.

    ``trained`` tells whether it takes part in the update of this step.
    """

    step: int
    problem: Problem
    index: int
    completion: Completion
    reward: float | None
    advantage: float
    trained: bool


@dataclass(frozen=True, slots=True)
class GrpoMetrics:
    """After update ``step`` (from 1) of ``total``. Means are over all rollouts unless said otherwise.

    ``reward_std`` is the mean of the groups' deviations, ``zero_variance`` the share of groups without
    one. ``entropy`` is estimated by -log p of the sampled tokens (nats per token). Over trained tokens:
    ``kl`` (None if not asked for), ``ratio_max`` (largest trainer-to-engine ratio, before truncation),
    ``logprob_gap`` (mean absolute difference of trainer and engine). ``tokens`` went through training,
    prompts included.
    """

    step: int
    total: int
    reward: float
    reward_std: float
    unverifiable: float
    zero_variance: float
    length: float
    truncated: float
    entropy: float
    kl: float | None
    ratio_max: float
    logprob_gap: float
    grad_norm: float
    learning_rate: float
    tokens: int
    sampling_seconds: float
    training_seconds: float


Reward = Callable[[Sequence[tuple[Problem, Completion]]], Sequence[float | None]]
"""Rewards of rollouts, in their order; None where unverifiable. A pure function of its argument."""


def train_grpo(
    model: Any,
    policy: Policy,
    settings: GrpoSettings,
    *,
    sample: Callable[[int], Sequence[Problem]],
    reward: Reward,
    checkpoints: Path,
    stop: Callable[[], bool] = lambda: False,
    recall: Callable[[int], Iterable[Completion]] = lambda step: (),
    on_rollouts: Callable[[int, Sequence[Rollout]], None] = lambda step, rollouts: None,
    on_step: Callable[[GrpoMetrics], None] = lambda metrics: None,
    before_save: BeforeSave = nothing,
) -> None:
    """Refine ``model`` in place, going on from ``checkpoints`` (of this run alone) if there are any.

    ``sample(step)``, with steps counted from 0, names the problems of a step and is a pure function of
    it. ``recall(step)`` may return completions of that step kept from an earlier attempt; the rest is
    sampled. Raises `Stopped` after checkpointing when ``stop()`` turns true, within a step too.
    """
    if settings.kl and not hasattr(model, "disable_adapter"):
        raise InputError("grpo with a KL term needs a LoRA adapter: the reference is the model without it")
    run = run_identity(settings)
    with learning(model, settings, settings.steps, checkpoints, run, before_save) as learner:
        learner.resume()
        check_packing(model)
        while learner.done < settings.steps:
            step, started = learner.done, time.perf_counter()
            policy.refresh()
            problems = sample(step)
            requests = [request(settings, step, p, i) for p in problems for i in range(settings.group)]
            completions = _complete(learner, policy, requests, recall(step), stop)
            asked = [p for p in problems for _ in range(settings.group)]
            rewards = reward(list(zip(asked, completions, strict=True)))
            rollouts = judge(settings, step + 1, problems, completions, rewards)
            on_rollouts(step + 1, rollouts)
            sampled = time.perf_counter()
            update = _update(learner, settings, [r for r in rollouts if r.trained])
            seconds = (sampled - started, time.perf_counter() - sampled)
            on_step(_metrics(learner, settings, rollouts, update, seconds))
            learner.save_if_due({}, stop)


def request(settings: GrpoSettings, step: int, problem: Problem, index: int) -> Request:
    """Sample ``index`` of ``problem`` at ``step`` (from 0). The key seeds its draws."""
    return Request(f"grpo/{step}/{problem.id}/{index}", problem.messages, settings.sampling)


def _complete(
    learner: Learner, policy: Policy, requests: list[Request], kept: Iterable[Completion], stop: Callable[[], bool]
) -> list[Completion]:
    """One completion for each request, in their order: those kept, the rest sampled."""
    wanted = {r.key for r in requests}
    if len(wanted) < len(requests):
        raise InputError("a step of grpo names a problem twice")
    found = {c.key: c for c in kept if c.key in wanted}
    for completion in policy.generate([r for r in requests if r.key not in found], stop):
        found[completion.key] = completion
    if stop():
        learner.save({})
        raise Stopped(f"stopped while sampling for step {learner.done + 1} of {learner.total}; run again to go on")
    return [found[r.key] for r in requests]


def judge(
    settings: GrpoSettings,
    step: int,
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    rewards: Sequence[float | None],
) -> list[Rollout]:
    """Rewards to advantages. Trained on are judged, non-empty rollouts of groups whose rewards differ."""
    shape = (len(problems), settings.group)
    table = torch.tensor([math.nan if r is None else r for r in rewards], dtype=torch.float64).reshape(shape)
    advantages = credit.advantages(table, settings.baseline, settings.scale).flatten().tolist()
    differ = credit.informative(table).tolist()
    rows = []
    for row, (completion, r, advantage) in enumerate(zip(completions, rewards, advantages, strict=True)):
        group, index = divmod(row, settings.group)
        trained = differ[group] and r is not None and len(completion.token_ids) > 0
        rows.append(Rollout(step, problems[group], index, completion, r, advantage, trained))
    return rows


@dataclass(frozen=True, slots=True)
class _Update:
    norm: float = 0.0
    rate: float = 0.0
    tokens: int = 0
    kl: float = 0.0
    ratio_max: float = 1.0
    gap: float = 0.0


def _update(learner: Learner, settings: GrpoSettings, rollouts: Sequence[Rollout]) -> _Update:
    """One optimizer step on the rollouts trained on. B rows, T tokens of the longest response."""
    if not rollouts:
        learner.skip()
        return _Update()
    examples = [from_tokens(r.completion.key, r.completion.prompt_ids, r.completion.token_ids) for r in rollouts]
    lengths = [e.supervised for e in examples]
    mask_B_T = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    advantages_B_T = credit.broadcast(torch.tensor([r.advantage for r in rollouts]), mask_B_T)
    engine = [_logprobs(r.completion) for r in rollouts]
    weights_B = loss.token_weights(
        lengths,
        settings.aggregation,
        longest=settings.sampling.max_tokens,
        micro_batches=learner.cut([len(e) for e in examples]),
    )
    rows = [
        Row(e, {"advantage": a[:n], "engine": mu, "weight": [w] * n})
        for e, n, a, mu, w in zip(examples, lengths, advantages_B_T.tolist(), engine, weights_B, strict=True)
    ]
    objective = partial(
        loss.policy_loss,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        engine_cap=settings.engine_cap,
        kl=settings.kl,
    )
    scored = learner.gradients(rows, objective, temperature=settings.sampling.temperature, reference=settings.kl > 0)
    norm, rate = learner.update()
    logprobs = torch.tensor([p for s in scored for p in s.logprobs])
    reference = torch.tensor([p for s in scored for p in s.reference])
    gap = logprobs - torch.tensor([p for row in engine for p in row])
    return _Update(
        norm=norm,
        rate=rate,
        tokens=sum(map(len, examples)),
        kl=loss.k3(logprobs, reference).mean().item() if settings.kl else 0.0,
        ratio_max=gap.max().exp().item(),
        gap=gap.abs().mean().item(),
    )


def _logprobs(completion: Completion) -> Sequence[float]:
    if completion.logprobs is None or len(completion.logprobs) != len(completion.token_ids):
        raise InputError(f"rollout {completion.key}: grpo needs the engine's log-probability of every token")
    return completion.logprobs


def _metrics(
    learner: Learner, settings: GrpoSettings, rollouts: Sequence[Rollout], update: _Update, seconds: tuple[float, float]
) -> GrpoMetrics:
    groups = [rollouts[i : i + settings.group] for i in range(0, len(rollouts), settings.group)]
    judged = [[r.reward for r in group if r.reward is not None] for group in groups]
    rewards = list(chain.from_iterable(judged))
    deviations = [_deviation(values) for values in judged]
    drawn = [p for r in rollouts for p in _logprobs(r.completion)]
    return GrpoMetrics(
        step=learner.done,
        total=learner.total,
        reward=_mean(rewards),
        reward_std=_mean(deviations),
        unverifiable=1 - len(rewards) / len(rollouts),
        zero_variance=_mean([float(d == 0) for d in deviations]),
        length=_mean([float(len(r.completion.token_ids)) for r in rollouts]),
        truncated=_mean([float(r.completion.finish is Finish.LENGTH) for r in rollouts]),
        entropy=-_mean(drawn),
        kl=update.kl if settings.kl else None,
        ratio_max=update.ratio_max,
        logprob_gap=update.gap,
        grad_norm=update.norm,
        learning_rate=update.rate,
        tokens=update.tokens,
        sampling_seconds=seconds[0],
        training_seconds=seconds[1],
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation with ddof 1; 0 where there is nothing to compare."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
