"""What a step of GRPO is watched by: means over its rollouts, and what the updates did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from distill import behaviours
from distill.engines.base import response_of
from distill.types import Finish
from rl.step_credit import log_ratios
from rl.update import Made, Rollout, logprobs

if TYPE_CHECKING:
    from rl.grpo import GrpoSettings

PHRASES = {"verifications": "verification", "corrections": "backtracking"}
"""The metrics that count phrases, with the behaviour of `distill.behaviours` that each is about."""


@dataclass(frozen=True, slots=True)
class GrpoMetrics:
    """After step ``step`` (from 1) of ``total``. Means are over all rollouts unless said otherwise.

    ``reward_std`` is the mean of the groups' deviations, ``zero_variance`` the share of groups without
    one, ``distinct`` the mean number of different answers in a group, ``draws`` how often problems were
    drawn. ``entropy`` is estimated by -log p of the sampled tokens (nats per token). Over trained tokens:
    ``kl`` (None if not asked for), ``ratio_max``, ``ratio_mean``, ``effective_share``, ``corrected`` and
    ``logprob_gap`` (trainer against engine, see `rl.update.Made`),
    ``clip_low`` and ``clip_high`` (shares of tokens whose gradient a clip stops).
    ``tokens`` went through training, prompts included. ``components`` are the means of what the reward is made of,
    as ``reward/NAME``; ``verifications`` and ``corrections`` count the phrases of `PHRASES` per rollout.
    ``teacher_kl`` estimates the reverse KL(student, teacher) in nats per token from the sampled tokens (None
    without a teacher), ``worst_step`` is the mean of the rollouts' lowest step rewards (None without them).
    """

    step: int
    total: int
    reward: float
    reward_std: float
    unverifiable: float
    zero_variance: float
    distinct: float
    draws: int
    length: float
    truncated: float
    entropy: float
    kl: float | None
    ratio_max: float
    ratio_mean: float
    effective_share: float
    corrected: float
    logprob_gap: float
    clip_low: float
    clip_high: float
    grad_norm: float
    learning_rate: float
    tokens: int
    sampling_seconds: float
    training_seconds: float
    verifications: float
    corrections: float
    teacher_kl: float | None = None
    worst_step: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)


def observe(
    settings: GrpoSettings,
    step: int,
    rollouts: Sequence[Rollout],
    draws: int,
    made: Made,
    seconds: tuple[float, float],
) -> GrpoMetrics:
    groups = [rollouts[i : i + settings.group] for i in range(0, len(rollouts), settings.group)]
    judged = [[r.reward for r in group if r.reward is not None] for group in groups]
    rewards = list(chain.from_iterable(judged))
    deviations = [_deviation(values) for values in judged]
    return GrpoMetrics(
        step=step,
        total=settings.steps,
        reward=_mean(rewards),
        reward_std=_mean(deviations),
        unverifiable=1 - len(rewards) / len(rollouts),
        zero_variance=_mean([float(d == 0) for d in deviations]),
        distinct=_mean([float(len({response_of(r.completion).answer for r in group})) for group in groups]),
        draws=draws,
        length=_mean([float(len(r.completion.token_ids)) for r in rollouts]),
        truncated=_mean([float(r.completion.finish is Finish.LENGTH) for r in rollouts]),
        entropy=-_mean(list(chain.from_iterable(logprobs(r.completion) for r in rollouts))),
        kl=made.kl if settings.loss.kl else None,
        ratio_max=made.ratio_max,
        ratio_mean=made.ratio_mean,
        effective_share=made.effective,
        corrected=made.corrected,
        logprob_gap=made.gap,
        clip_low=made.clip_low,
        clip_high=made.clip_high,
        grad_norm=made.norm,
        learning_rate=made.rate,
        tokens=made.tokens,
        sampling_seconds=seconds[0],
        training_seconds=seconds[1],
        verifications=_mean([float(said("verifications", r.completion.text)) for r in rollouts]),
        corrections=_mean([float(said("corrections", r.completion.text)) for r in rollouts]),
        teacher_kl=_teacher_kl(rollouts),
        worst_step=_worst_step(rollouts),
        components=_components(rollouts),
    )


def said(kind: str, text: str) -> int:
    """How often a text says what stands under ``kind`` in `PHRASES`."""
    return behaviours.count(behaviours.shipped()[PHRASES[kind]], text)


def _teacher_kl(rollouts: Sequence[Rollout]) -> float | None:
    told = [r for r in rollouts if r.teacher]
    return -_mean(list(chain.from_iterable(log_ratios(r.completion, r.teacher) for r in told))) if told else None


def _worst_step(rollouts: Sequence[Rollout]) -> float | None:
    worst = [min(r.steps) for r in rollouts if r.steps]
    return _mean(worst) if worst else None


def _components(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Each component's mean over the rollouts that it judged."""
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.components)
    values = {name: [v for r in rollouts if (v := r.components.get(name)) is not None] for name in names}
    return {f"reward/{name}": _mean(found) for name, found in values.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation with ddof 1; 0 where there is nothing to compare."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
