"""The metrics of a GRPO step: means over its rollouts, and what the updates did. `sample_metrics` computes those that
any step with samples reports."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, compress
from typing import TYPE_CHECKING

from distill.engines.base import response_of
from distill.evaluation import behaviours
from distill.evaluation.voting import ballot
from distill.types import Finish
from rl.step_credit import log_ratios
from rl.update import Rollout, UpdateMetrics, logprobs, sampled

if TYPE_CHECKING:
    from rl.grpo import GrpoSettings


@dataclass(frozen=True, kw_only=True)
class SampleMetrics:
    """What every step with samples reports about them, for any objective: means, NaN if undefined. ``entropy`` is
    estimated by -log p of the sampled tokens (nats per token); ``verifications`` and ``corrections`` count the phrases
    of two behaviours per rollout (`distill.evaluation.behaviours`)."""

    reward: float
    unverifiable: float
    length: float
    truncated: float
    entropy: float
    verifications: float
    corrections: float


@dataclass(frozen=True, kw_only=True)
class GrpoMetrics(UpdateMetrics, SampleMetrics):
    """After step ``step`` (from 1) of ``total``: what the updates did, what the samples were like, and the following
    means over all rollouts; NaN if undefined.

    ``reward_std`` is the mean of the groups' standard deviations, ``zero_variance`` the share of groups whose judged
    rewards do not differ (both NaN for groups of one), ``distinct`` the mean number of different answers in a group
    (for prose, what it marks as its result: `distill.evaluation.voting.ballot`), ``draws`` how often problems were
    drawn.
    ``components`` are the means of the reward's components, as ``reward/NAME``.
    ``teacher_kl`` estimates the reverse KL(student, teacher) in nats per token from the sampled tokens,
    ``worst_step`` is the mean of the rollouts' lowest step rewards, ``value_explained`` the share of the variance of a
    value head's targets that it explained before the step: 0 is no better than a constant.
    ``solved_without_preference`` is `rl.draws.Draws.solved`, if problems are chosen by their pass rate.
    """

    step: int
    total: int
    reward_std: float
    zero_variance: float
    distinct: float
    draws: int
    sampling_seconds: float
    training_seconds: float
    teacher_kl: float
    worst_step: float
    value_explained: float
    components: Mapping[str, float]
    solved_without_preference: float = math.nan


def observe(
    settings: GrpoSettings,
    step: int,
    rollouts: Sequence[Rollout],
    draws: int,
    updates: UpdateMetrics,
    seconds: tuple[float, float],
) -> GrpoMetrics:
    groups = [rollouts[i : i + settings.group] for i in range(0, len(rollouts), settings.group)]
    judged = [[r.reward for r in group if r.reward is not None] for group in groups]
    compared = judged if settings.group > 1 else []
    return GrpoMetrics(
        **asdict(updates),
        **asdict(sample_metrics(rollouts)),
        step=step,
        total=settings.steps,
        reward_std=_mean([_deviation(values) for values in compared]),
        zero_variance=_mean([float(len(set(values)) < 2) for values in compared]),
        distinct=_mean([float(len({ballot(response_of(r.completion).answer) for r in group})) for group in groups]),
        draws=draws,
        sampling_seconds=seconds[0],
        training_seconds=seconds[1],
        teacher_kl=_teacher_kl(rollouts),
        worst_step=_mean([min(r.steps) for r in rollouts if r.steps]),
        value_explained=_explained(rollouts),
        components=_components(rollouts),
    )


def sample_metrics(rollouts: Sequence[Rollout]) -> SampleMetrics:
    rewards = [r.reward for r in rollouts if r.reward is not None]
    return SampleMetrics(
        reward=_mean(rewards),
        unverifiable=1 - len(rewards) / len(rollouts),
        length=_mean([float(len(r.completion.token_ids)) for r in rollouts]),
        truncated=_mean([float(r.completion.finish is Finish.LENGTH) for r in rollouts]),
        entropy=-_mean([p for r in rollouts for p in _at_sampled(r, logprobs(r.completion))]),
        verifications=_phrases("verification", rollouts),
        corrections=_phrases("backtracking", rollouts),
    )


def _phrases(behaviour: str, rollouts: Sequence[Rollout]) -> float:
    """How often a rollout uses phrases that are typical of a behaviour, on average."""
    phrases = behaviours.shipped()[behaviour]
    return _mean([float(behaviours.count(phrases, r.completion.text)) for r in rollouts])


def _teacher_kl(rollouts: Sequence[Rollout]) -> float:
    taught = [r for r in rollouts if r.teacher]
    return -_mean([d for r in taught for d in _at_sampled(r, log_ratios(r.completion, r.teacher))])


def _at_sampled(rollout: Rollout, values: Sequence[float]) -> Iterator[float]:
    """The values of the tokens that the policy chose."""
    return compress(values, sampled(rollout.completion))


def _explained(rollouts: Sequence[Rollout]) -> float:
    """1 - Var(target - value) / Var(target), over all tokens; NaN if all targets are equal."""
    assessments = [r.assessment for r in rollouts if r.assessment]
    values, targets = (
        list(chain.from_iterable(getattr(a, name) for a in assessments)) for name in ("values", "targets")
    )
    errors = [target - value for target, value in zip(targets, values, strict=True)]
    whole = _deviation(targets) ** 2
    return 1 - _deviation(errors) ** 2 / whole if whole > 0 else math.nan


def _components(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Each component's mean over the rollouts that it judged; empty if the only component is the reward itself."""
    names = dict.fromkeys(name for rollout in rollouts for name in rollout.components)
    if len(names) == 1 and all(r.reward in r.components.values() for r in rollouts):
        return {}
    values = {name: [v for r in rollouts if (v := r.components.get(name)) is not None] for name in names}
    return {f"reward/{name}": _mean(found) for name, found in values.items()}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation with ddof 1; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
