"""GRPO in one visible loop: sample, judge, assign credit, learn.

`train_grpo` knows problems, a policy engine, settings and callbacks, but not stages, YAML or the store. A step
samples ``group`` responses to each problem, turns their rewards into advantages, and makes ``updates``
optimizer steps on them (one by default: strictly on-policy). With a ``critic``, advantages are relative to the
estimates of a value head (`rl.critic`), and the loop is PPO; nothing else differs. A step is a function of (settings,
step, weights): sampling is keyed by (seed, request key), so a killed step is sampled again to the same bits, or
read back through ``recall``. Checkpoints lie between steps. ``on_rollouts`` gets the rollouts before the updates
that they feed. The loss is in `rl.loss`, the update in `rl.update`, and the metrics in `rl.monitors`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from distill.prompting import Ask, plainly
from distill.training.learner import BeforeSave, Learner, LearnerSettings, OnAllRanks, nothing, run_identity
from distill.training.passes import Objective
from distill.training.session import learning
from distill.types import Completion, Finish, Problem, Request, Sampling
from pipeline.errors import Stopped
from pipeline.stage import stop_check
from rl import credit, rewards
from rl.critic import HEAD, ActorCritic, Critic, assess, value_head
from rl.loss import Aggregation, PolicyLoss
from rl.monitors import GrpoMetrics, observe
from rl.rewards import Component, Mixed, Scores
from rl.step_credit import Mix, outcome_alone
from rl.update import Rollout, UpdateRecord, update


class Policy(Protocol):
    """An engine that samples from the weights under training; ``name`` as in `distill.catalog`."""

    name: str

    def generate(self, requests: Iterable[Request], stopping: Callable[[], bool]) -> Iterator[Completion]: ...

    def refresh(self) -> None:
        """Take over the current weights."""
        ...


@dataclass(frozen=True, kw_only=True)
class GrpoSettings(LearnerSettings):
    """``group`` samples of each problem of a step; ``updates`` optimizer steps on them in each of ``passes`` passes.
    Combinations are checked where a user writes them (`rl.stages.options`): sampling without truncation, which would
    bias the ratios; an adapter if there is a KL term; at least two samples if they are compared.

    ``refills``: groups whose rewards are all equal teach nothing. Up to this many times, the same number of problems
    is drawn again, until there are as many informative groups as the step has problems (DAPO's dynamic sampling).
    ``overlong``: responses cut at the limit are learned from (keep), left out of the loss (filter), or
    their reward is lowered over the last ``overlong_buffer`` tokens (punish). ``reward`` lists the components of
    rewards (`rl.rewards`); it is empty if the `Reward` returns rewards itself. ``critic`` replaces ``baseline`` and
    ``scale``, and every judged rollout is trained on. ``lengths`` are stages (until step, max_tokens),
    with steps counted from 1; after them ``sampling.max_tokens`` applies.
    """

    steps: int
    group: int = 8
    sampling: Sampling = field(default_factory=Sampling)
    baseline: credit.Baseline = "group"
    scale: credit.Scale = "group"
    loss: PolicyLoss = field(default_factory=PolicyLoss)
    aggregation: Aggregation = "token_mean"
    updates: int = 1
    passes: int = 1
    refills: int = 0
    overlong: Literal["keep", "filter", "punish"] = "keep"
    overlong_buffer: int = 0
    reward: tuple[Component, ...] = ()
    lengths: tuple[tuple[int, int], ...] = ()
    critic: Critic | None = None

    @property
    def each_step(self) -> int:
        """Optimizer steps on the rollouts of a step."""
        return self.updates * self.passes

    @property
    def objective(self) -> Objective:
        critic = self.critic
        return ActorCritic(self.loss, critic.weight, critic.clip) if critic else self.loss

    def sampling_at(self, step: int) -> Sampling:
        """The sampling settings at ``step`` (from 0)."""
        longest = next((tokens for until, tokens in self.lengths if step < until), self.sampling.max_tokens)
        return replace(self.sampling, max_tokens=longest)


Reward = Callable[[Sequence[tuple[Problem, Completion]]], Sequence[float | None] | Sequence[Scores]]
"""The rewards of rollouts, in their order, None or NaN if unverifiable; or, if `GrpoSettings.reward` lists components,
the scores of the verifiers. A pure function of its argument."""

Sample = Callable[[int, int], Sequence[Problem]]
"""The problems of (step, draw), both from 0; no problem twice in a step. A pure function."""


def train_grpo(
    model: Any,
    policy: Policy,
    settings: GrpoSettings,
    *,
    sample: Sample,
    reward: Reward,
    checkpoints: Path,
    mix: Mix = outcome_alone,
    ask: Ask = plainly,
    stop: Callable[[], bool] = lambda: False,
    recall: Callable[[int], Iterable[Completion]] = lambda step: (),
    on_rollouts: Callable[[int, Sequence[Rollout]], None] = lambda step, rollouts: None,
    on_updates: Callable[[Sequence[UpdateRecord]], None] = lambda records: None,
    on_step: Callable[[GrpoMetrics], None] = lambda metrics: None,
    before_save: BeforeSave = nothing,
    over: Callable[[Learner], bool] = lambda learner: False,
) -> None:
    """Refine ``model`` in place, continuing from ``checkpoints`` (of this run only) if there are any.

    ``ask`` turns each problem into a prompt; a prefilled beginning of the response is seen but not learned. ``mix`` may
    add to the credit that a rollout has from its reward (`rl.step_credit`). ``recall(step)`` may return
    completions of that step from an earlier attempt; the rest is sampled. ``over`` is asked before each step
    and after the last whether the run ends here; it may set the learner back to an earlier step (`rl.guard`).
    Raises `Stopped`, after checkpointing, once ``stop()`` is true, also within a step.
    """
    critic = settings.critic
    head = ((HEAD, critic.learning_rate),) if critic else ()
    every = settings.checkpoint_steps and settings.checkpoint_steps * settings.each_step
    how = replace(settings, checkpoint_steps=every, optimizer=replace(settings.optimizer, own_rates=head))
    total = settings.steps * settings.each_step
    with (
        value_head(model, critic.detached) if critic else nullcontext(),
        learning(model, how, total, checkpoints, run_identity(settings), before_save) as learner,
    ):
        learner.resume()
        for part in (policy, mix):
            if isinstance(part, OnAllRanks):
                part.attach(learner)
        while not over(learner) and learner.done < total:
            step, started = learner.done // settings.each_step, time.perf_counter()
            learner.gather()
            now = replace(settings, sampling=settings.sampling_at(step))
            policy.refresh()
            try:
                judged, draws = _rollouts(policy, now, step, sample, ask, reward, list(recall(step)), stop)
            except Stopped:
                learner.save({})  # otherwise the updates since the last checkpoint would be lost
                raise
            rollouts = assess(learner, critic, now.sampling.temperature, judged) if critic else mix(judged)
            on_rollouts(step + 1, rollouts)
            sampled = time.perf_counter()
            trained = [r for r in rollouts if r.trained]
            made, records = update(learner, now, step + 1, trained, len(rollouts) / draws)
            on_updates(records)
            seconds = (sampled - started, time.perf_counter() - sampled)
            on_step(observe(now, step + 1, rollouts, draws, made, seconds))
            learner.save_if_due({}, stop)
        learner.gather()


def _rollouts(
    policy: Policy,
    settings: GrpoSettings,
    step: int,
    sample: Sample,
    ask: Ask,
    reward: Reward,
    kept: Iterable[Completion],
    stop: Callable[[], bool],
) -> tuple[list[Rollout], int]:
    """The judged rollouts of a step, and the number of draws that it took."""
    problems: list[Problem] = []
    completions: list[Completion] = []
    mixtures: list[Mixed] = []
    wanted = draw = 0
    for draw in range(1 + settings.refills):
        fresh = sample(step, draw)
        wanted = wanted or len(fresh)
        requests = [request(settings.sampling, step, p, i, ask) for p in fresh for i in range(settings.group)]
        made = complete(policy, requests, kept, stop)
        asked = [p for p in fresh for _ in range(settings.group)]
        mixtures += _mixed(settings, made, reward(list(zip(asked, made, strict=True))))
        problems += fresh
        completions += made
        if sum(credit.informative(_table(settings, mixtures)).tolist()) >= wanted:
            break
    return judge(settings, step + 1, problems, completions, mixtures, wanted), draw + 1


def request(sampling: Sampling, step: int, problem: Problem, index: int, ask: Ask = plainly) -> Request:
    """The request for sample ``index`` of ``problem`` at ``step`` (from 0). Its key seeds the sampling."""
    asked = ask(problem)
    key = f"grpo/{step}/{problem.id}/{index}"
    return Request(key, asked.messages, sampling, asked.prefix, asked.budget)


def complete(
    policy: Policy, requests: Sequence[Request], kept: Iterable[Completion], stop: Callable[[], bool]
) -> list[Completion]:
    """One completion per request, in their order: those in ``kept``, the rest sampled."""
    found = {c.key: c for c in kept}
    found |= {c.key: c for c in policy.generate([r for r in requests if r.key not in found], stop)}
    stop_check(stop)
    return [found[r.key] for r in requests]


def _mixed(settings: GrpoSettings, completions: Sequence[Completion], results: Sequence[Any]) -> list[Mixed]:
    """The rewards of whole groups from the result of a `Reward`, with the soft overlong punishment if it is on."""
    longest = settings.sampling.max_tokens
    if settings.reward:
        scored = [rewards.Sampled(c.token_ids, scores) for c, scores in zip(completions, results, strict=True)]
        groups = [scored[i : i + settings.group] for i in range(0, len(scored), settings.group)]
        found = [mixture for group in groups for mixture in rewards.mixed(settings.reward, group, longest)]
    else:
        found = [Mixed(None if reward is None or math.isnan(reward) else reward) for reward in results]
    if settings.overlong != "punish":
        return found
    falls = [credit.soft_overlong(len(c.token_ids), longest, settings.overlong_buffer) for c in completions]
    return [
        Mixed(None if reward is None else reward + fall, {**parts, "overlong": fall})
        for (reward, parts), fall in zip(found, falls, strict=True)
    ]


def _table(settings: GrpoSettings, mixtures: Sequence[Mixed]) -> torch.Tensor:
    """The rewards (P, G), NaN if unverifiable."""
    values = [math.nan if m.reward is None else m.reward for m in mixtures]
    return torch.tensor(values, dtype=torch.float64).reshape(-1, settings.group)


def judge(
    settings: GrpoSettings,
    step: int,
    problems: Sequence[Problem],
    completions: Sequence[Completion],
    mixtures: Sequence[Mixed],
    wanted: float = math.inf,
) -> list[Rollout]:
    """Turn rewards into advantages. A rollout is trained on if it was judged, has a sampled token, is in one of the
    first ``wanted`` groups whose rewards differ, and was not cut at the limit (if these are filtered). With a critic,
    groups need not differ, and the advantages come later."""
    table = _table(settings, mixtures)
    if settings.critic:
        compared, taken = torch.zeros_like(table), [True] * len(table)
    else:
        differ = credit.informative(table).tolist()
        compared = credit.advantages(table, settings.baseline, settings.scale)
        taken = [differs and sum(differ[:g]) < wanted for g, differs in enumerate(differ)]
    advantages = compared.flatten().tolist()
    rows = []
    for row, (completion, mixture, advantage) in enumerate(zip(completions, mixtures, advantages, strict=True)):
        group, index = divmod(row, settings.group)
        cut = settings.overlong == "filter" and completion.finish is Finish.LENGTH
        sampled = len(completion.token_ids) > len(completion.forced)
        trained = taken[group] and mixture.reward is not None and sampled and not cut
        per_token = (advantage,) * len(completion.token_ids)
        rows.append(
            Rollout(step, problems[group], index, completion, mixture.reward, per_token, trained, mixture.components)
        )
    return rows
