"""From judged rollouts to optimizer steps.

The only part of GRPO that knows rows, micro-batches and weights. With several updates per step (shares of the
rollouts, passes over them, or both), the trainer first computes its own log-probabilities of all rollouts, under the
weights that sampled: they are the old policy of every ratio that follows. With one update, old and current policy are
the same, and no extra pass is made. Tokens that were not sampled (`Completion.forced`) are seen by the model but never
learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill.randomness import shuffled
from distill.training.batching import Example
from distill.training.learner import Learner
from distill.training.passes import Row, RowScores
from distill.types import Completion, Problem
from pipeline.errors import InputError
from rl import loss

if TYPE_CHECKING:
    from rl.grpo import GrpoSettings


@dataclass(frozen=True, slots=True)
class Assessment:
    """The trainer's figures for a rollout's sampled tokens under the weights that sampled: ``logprobs``, those of the
    ``reference`` if a KL penalty is in the reward, the ``values`` of the value head, and the ``targets`` that it
    learns (`rl.critic`)."""

    logprobs: Sequence[float]
    reference: Sequence[float]
    values: Sequence[float]
    targets: Sequence[float]


@dataclass(frozen=True, slots=True)
class Rollout:
    """Sample ``index`` of ``problem`` at ``step`` (from 1). ``reward`` is None if no verifier could judge it.

    ``components`` are those of the reward, by name. ``advantages`` has one entry for each token of the
    completion: credit is per token from the start. ``trained`` means that it takes part in the updates of this step.
    ``teacher`` are a teacher's log-probabilities of the tokens, ``steps`` the rewards of its steps, if there are any
    (`rl.step_credit`). ``assessment`` is set if a value head is the baseline.
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
    assessment: Assessment | None = None

    @property
    def advantage(self) -> float:
        """The mean over the completion's tokens; an outcome reward gives them all the same."""
        if len(set(self.advantages)) > 1:
            return math.fsum(self.advantages) / len(self.advantages)
        return self.advantages[0] if self.advantages else 0.0


@dataclass(frozen=True, kw_only=True)
class UpdateMetrics:
    """What the updates of a step did, by metric name, over trained tokens; NaN if not computed.

    Under the weights that sampled: ``ratio_max`` is the largest trainer-to-engine ratio before correction,
    ``ratio_mean`` their mean (of the products over a response if the correction's level is the sequence),
    ``ratio_corrected`` their mean after it, ``effective_share`` the effective sample size of the corrected weights as a
    share of the tokens, ``corrected`` the share of tokens whose weight it bounded, ``logprob_gap`` the mean absolute
    difference between trainer and engine in nats per token. Under the weights just before each update: ``kl``,
    ``entropy_exact`` (of the whole distribution that each token was drawn from, nats), ``clip_low`` and ``clip_high``
    (the shares of tokens whose gradient a clip stops), ``value_error`` (half the mean squared error of a value head).
    ``tokens`` counts what went through training, prompts included; ``grad_norm`` is before clipping.
    """

    grad_norm: float = 0.0
    learning_rate: float = 0.0
    tokens: int = 0
    kl: float = math.nan
    ratio_max: float = 1.0
    ratio_mean: float = 1.0
    ratio_corrected: float = 1.0
    effective_share: float = 1.0
    corrected: float = 0.0
    logprob_gap: float = 0.0
    clip_low: float = 0.0
    clip_high: float = 0.0
    entropy_exact: float = math.nan
    value_error: float = math.nan


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """Records that optimizer update ``update`` (from 1) learned from a rollout. ``logprobs`` are the trainer's own of
    its sampled tokens, under the weights before that update; each has ``weight`` in the loss. ``old`` are those under
    the weights that sampled, if a step makes several updates; ``reference`` those that a KL term compares with.
    Otherwise these are empty."""

    rollout: Rollout
    update: int
    weight: float
    logprobs: Sequence[float]
    old: Sequence[float] = ()
    reference: Sequence[float] = ()


def update(
    learner: Learner, settings: GrpoSettings, step: int, rollouts: Sequence[Rollout], sampled: float
) -> tuple[UpdateMetrics, list[UpdateRecord]]:
    """Make ``settings.passes`` over the rollouts of ``step`` (from 1), each of ``settings.updates`` optimizer steps.

    ``sampled`` is the number of rollouts of one draw of the step's problems, including those that are not learned from.
    (Refills are not counted, because they depend on the rewards.)
    """
    rows = _rows(learner, settings, rollouts)
    metrics, records = [], []
    for number in range(settings.passes):
        for part in _shares(rollouts, settings.updates, settings.sampling.seed, step, number):
            batch = [rows[id(r)] for r in part]
            of_update, weights, scored = _step(learner, settings, batch, sampled / settings.updates)
            metrics.append(of_update)
            for rollout, row, weight, scores in zip(part, batch, weights, scored, strict=True):
                old = row.streams["old"] if settings.each_step > 1 else ()
                records.append(UpdateRecord(rollout, learner.done, weight, scores.logprobs, old, scores.reference))
    return _mean_metrics(metrics), records


def _rows(learner: Learner, settings: GrpoSettings, rollouts: Sequence[Rollout]) -> dict[int, Row]:
    """The training row of each rollout, by its id. If a step makes several updates, all have a stream ``old``: the
    log-probabilities under the weights that sampled."""
    rows = {id(r): row_of(r) for r in rollouts}
    unknown = {name: row for name, row in rows.items() if "old" not in row.streams}
    if settings.each_step == 1 or not unknown:
        return rows
    scored = learner.score(list(unknown.values()), settings.sampling.temperature)
    for (name, row), scores in zip(unknown.items(), scored, strict=True):
        rows[name] = Row(row.example, {**row.streams, "old": scores.logprobs})
    return rows


def _shares(rollouts: Sequence[Rollout], count: int, seed: int, step: int, number: int) -> list[list[Rollout]]:
    """Whole groups spread over ``count`` updates: in order in the first pass (``number`` 0), later shuffled."""
    names = list(dict.fromkeys(r.problem.id for r in rollouts))
    names = shuffled(names, seed, "pass", step, number) if number else names
    part = {name: index * count // len(names) for index, name in enumerate(names)}
    return [[r for r in rollouts if part[r.problem.id] == index] for index in range(count)]


def sampled(completion: Completion) -> list[bool]:
    """For each token, whether the policy chose it."""
    forced = set(completion.forced)
    return [t not in forced for t in range(len(completion.token_ids))]


def aligned(completion: Completion, values: Iterable[float], given: Any) -> list[Any]:
    """The values of sampled tokens, spread over all tokens; ``given`` for those that were not sampled."""
    left = iter(values)
    return [next(left) if own else given for own in sampled(completion)]


def row_of(rollout: Rollout) -> Row:
    """The rollout as a training row: its sampled tokens are learned, with the loss's inputs for each."""
    completion, chosen = rollout.completion, sampled(rollout.completion)
    prompt = completion.prompt_ids
    example = Example(completion.key, (*prompt, *completion.token_ids), (*(False for _ in prompt), *chosen))
    streams: dict[str, Sequence[float]] = {
        "advantage": list(compress(rollout.advantages, chosen)),
        "engine": list(compress(logprobs(completion), chosen)),
    }
    if rollout.assessment:
        streams |= {"old": rollout.assessment.logprobs}
        streams |= {"expected": rollout.assessment.values, "target": rollout.assessment.targets}
        streams |= {"reference": rollout.assessment.reference} if rollout.assessment.reference else {}
    return Row(example, streams)


def logprobs(completion: Completion) -> Sequence[float]:
    """The engine's log-probability of every token of a rollout."""
    if completion.logprobs is None or len(completion.logprobs) != len(completion.token_ids):
        raise InputError(f"rollout {completion.key}: grpo needs the engine's log-probability of every token")
    return completion.logprobs


def _step(
    learner: Learner, settings: GrpoSettings, rows: Sequence[Row], sampled: float
) -> tuple[UpdateMetrics, Sequence[float], list[RowScores]]:
    """One optimizer step on ``rows``. Also returns each row's weight in the loss, and its scores."""
    if not rows:
        learner.skip()
        return UpdateMetrics(), [], []
    weights = loss.token_weights(
        [row.example.supervised for row in rows],
        settings.aggregation,
        longest=settings.sampling.max_tokens,
        micro_batches=learner.micro_batches([row.example for row in rows]),
        sampled=sampled,
    )
    batch = []
    for index, (row, weight) in enumerate(zip(rows, weights, strict=True)):
        length = row.example.supervised
        batch.append(Row(row.example, {**row.streams, "weight": [weight] * length, "row": [float(index)] * length}))
    policy, temperature = settings.loss, settings.sampling.temperature
    scored = learner.gradients(
        batch, settings.objective, temperature=temperature, reference=policy.kl > 0, entropy=True
    )  # fmt: skip
    norm, rate = learner.update()
    return _update_metrics(policy, batch, scored, norm, rate), weights, scored


def _update_metrics(
    policy: loss.PolicyLoss, batch: Sequence[Row], scored: Sequence[RowScores], norm: float, rate: float
) -> UpdateMetrics:
    """What an update did, over the tokens that it learned from."""

    def stream(name: str) -> Tensor:
        return _flat([row.streams[name] for row in batch])

    present, reference = _flat([s.logprobs for s in scored]), _flat([s.reference for s in scored])
    old = _flat([row.streams.get("old", s.logprobs) for row, s in zip(batch, scored, strict=True)])
    rows, engine, correction = stream("row"), stream("engine"), policy.correction
    ratios = loss.engine_ratios(old, engine, rows, correction.level)
    weighed = loss.engine_weights(old, engine, rows, correction)
    unbounded = loss.engine_weights(old, engine, rows, replace(correction, low=0.0, high=math.inf))
    rho = loss.ratio(present, old, rows, policy.level)
    low, high = loss.clip_fractions(rho, stream("advantage"), policy)
    errors = _flat([s.values for s in scored]) - stream("target") if "target" in batch[0].streams else None
    return UpdateMetrics(
        grad_norm=norm,
        learning_rate=rate,
        tokens=sum(len(row.example) for row in batch),
        kl=loss.kl_estimate(present, reference).mean().item() if len(reference) else math.nan,
        ratio_max=ratios.max().item(),
        ratio_mean=ratios.mean().item(),
        ratio_corrected=weighed.mean().item(),
        effective_share=(weighed.sum().square() / weighed.square().sum() / len(weighed)).item(),
        corrected=(weighed != unbounded).double().mean().item(),
        logprob_gap=(old - engine).abs().mean().item(),
        clip_low=low,
        clip_high=high,
        entropy_exact=_flat([s.entropy for s in scored]).mean().item(),
        value_error=math.nan if errors is None else errors.square().mean().item() / 2,
    )


def _flat(values: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(list(chain.from_iterable(values)), dtype=torch.float64)


def _mean_metrics(updates: Sequence[UpdateMetrics]) -> UpdateMetrics:
    """The updates of a step as one: the last learning rate, the sum of tokens, the largest ratio, and means of the rest
    over the updates that learned."""
    learned = [m for m in updates if m.tokens]
    if len(learned) < 2:
        return learned[0] if learned else updates[-1]
    columns = {one.name: [getattr(m, one.name) for m in learned] for one in fields(UpdateMetrics)}
    means = {name: math.fsum(column) / len(learned) for name, column in columns.items()}
    whole = {"learning_rate": learned[-1].learning_rate, "tokens": sum(columns["tokens"])}
    return UpdateMetrics(**means | whole | {"ratio_max": max(columns["ratio_max"])})
