"""Credit from several sources, mixed per token: outcome rewards, step rewards, a teacher's log-probabilities.

`rl.grpo.train_grpo` gives each rollout the advantage of its outcome and passes the step's rollouts to a `Mix`,
which may add to it. GRPO with a weighted teacher, step rewards, and on-policy distillation (the teacher with
weight 1, the outcome with 0) are settings of one `Mixture`; the loop, loss and ledger are the same. Step rewards
come from elsewhere (`rl.process`), and so do a teacher's scores (`rl.teacher`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Literal

import torch

from distill.training.learner import Learner, OnAllRanks
from distill.types import Completion, Finish
from rl.credit import EPSILON
from rl.update import Rollout, logprobs

Mix = Callable[[Sequence[Rollout]], Sequence[Rollout]]
"""Returns the rollouts of a step, in their order, with all their credit. A pure function."""

Score = Callable[[Sequence[Completion]], Sequence[Sequence[float]]]
"""A teacher: its log-probability of every token of each completion, in the order of the completions."""

StepReward = tuple[int, float]
"""The last token of a step of reasoning (an index into the completion's tokens), and the step's reward."""

StepRewards = Callable[[Sequence[Rollout]], Sequence[Sequence[StepReward]]]

StepForm = Literal["minimum", "sum"]
"""Which steps of a response count: its worst one (`least_advantages`), or all of them (`step_advantages`)."""


def outcome_alone(rollouts: Sequence[Rollout]) -> Sequence[Rollout]:
    return rollouts


@dataclass(frozen=True)
class Mixture:
    """advantage = ``outcome`` A + ``step_weight`` steps + ``teacher_weight`` (teacher logp - student logp).
    Step rewards become advantages by ``step_form``.

    A rollout that was kept out of training only because of its outcome (all rewards of its group equal, or no
    verifier could judge) is trained on if another source gives it credit. ``leave_out_cut`` keeps out those cut at
    the limit.
    """

    outcome: float = 1.0
    teacher: Score | None = None
    teacher_weight: float = 1.0
    steps: StepRewards | None = None
    step_weight: float = 1.0
    step_form: StepForm = "sum"
    leave_out_cut: bool = False

    def attach(self, learner: Learner) -> None:
        """Have the teacher and the scorer of steps work on every rank, if they can."""
        for part in (self.teacher, self.steps):
            if isinstance(part, OnAllRanks):
                part.attach(learner)

    def __call__(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        teacher_logprobs = self.teacher([r.completion for r in rollouts]) if self.teacher else [()] * len(rollouts)
        steps = self.steps(rollouts) if self.steps else [()] * len(rollouts)
        earned = _of_groups(rollouts, steps, self.step_form) if self.steps else [()] * len(rollouts)
        mixed = [self._mixed(*row) for row in zip(rollouts, teacher_logprobs, earned, strict=True)]
        return [replace(r, steps=tuple(value for _, value in row)) for r, row in zip(mixed, steps, strict=True)]

    def _mixed(self, rollout: Rollout, teacher_logprobs: Sequence[float], earned: Sequence[float]) -> Rollout:
        own = [self.outcome * a if rollout.trained else 0.0 for a in rollout.advantages]
        terms: list[tuple[float, Sequence[float]]] = []
        if self.teacher:
            terms.append((self.teacher_weight, log_ratios(rollout.completion, teacher_logprobs)))
        if self.steps:
            terms.append((self.step_weight, earned))
        total = [a + sum(w * values[t] for w, values in terms) for t, a in enumerate(own)]
        sampled = len(rollout.completion.token_ids) > len(rollout.completion.forced)
        left_out = self.leave_out_cut and rollout.completion.finish is Finish.LENGTH
        trained = sampled and not left_out and any(total)
        return replace(rollout, advantages=tuple(total), trained=trained, teacher=tuple(teacher_logprobs))


def log_ratios(completion: Completion, teacher: Sequence[float]) -> list[float]:
    """The teacher's minus the student's log-probability of each token. Its negative estimates, on the student's own
    samples, the reverse KL(student, teacher) at each token. There is no discount: a token's credit is its own
    (https://thinkingmachines.ai/blog/on-policy-distillation)."""
    return [theirs - ours for theirs, ours in zip(teacher, logprobs(completion), strict=True)]


def _of_groups(
    rollouts: Sequence[Rollout], earned: Sequence[Sequence[StepReward]], form: StepForm
) -> list[list[float]]:
    """Step advantages of rollouts whose groups are adjacent."""
    result: list[list[float]] = []
    pairs = list(zip(rollouts, earned, strict=True))
    for _, group in groupby(pairs, key=lambda pair: pair[0].problem.id):
        members = list(group)
        lengths = [len(rollout.completion.token_ids) for rollout, _ in members]
        of = step_advantages if form == "sum" else least_advantages
        result += of([steps for _, steps in members], lengths)
    return result


LEAST_SPREAD = 1e-3
"""Worst steps whose deviation is less than this count as equal: dividing by it would only amplify noise."""


def least_advantages(steps: Sequence[Sequence[StepReward]], lengths: Sequence[int]) -> list[list[float]]:
    """One group's step rewards -> an advantage for each token, in the minimum form (PURE,
    https://arxiv.org/abs/2504.15275): a response is worth its worst step.

    Worst steps are normalised over the group's responses (mean, ddof-1 deviation). A positive advantage goes to all
    tokens up to the end of the last step; a negative one to those up to the end of the worst step, because what comes
    after it did not cause it. A sum rewards writing more steps that are easily right, and a policy soon does nothing
    else; a minimum cannot be raised by length. A response without steps gets nothing.
    """
    worst = [min(value for _, value in row) for row in steps if row]
    deviation = torch.tensor(worst, dtype=torch.float64).std().item() if len(worst) > 1 else 0.0
    result = [[0.0] * length for length in lengths]
    if deviation < LEAST_SPREAD:
        return result
    mean = sum(worst) / len(worst)
    for row, credit in zip(steps, result, strict=True):
        if row:
            least = min(value for _, value in row)
            advantage = (least - mean) / (deviation + EPSILON)
            blamed = next(end for end, value in row if value == least)
            for t in range((row[-1][0] if advantage >= 0 else blamed) + 1):
                credit[t] = advantage
    return result


def step_advantages(steps: Sequence[Sequence[StepReward]], lengths: Sequence[int]) -> list[list[float]]:
    """One group's step rewards -> an advantage for each token of each response (DeepSeekMath, section 4.1.3).

    Rewards are normalised over all steps of the group (mean, ddof-1 deviation). A token gets the sum over the
    steps that end at it or later, so text after the last step gets none.
    """
    rewards = [value for row in steps for _, value in row]
    result = [[0.0] * length for length in lengths]
    if len(set(rewards)) < 2:
        return result
    deviation, mean = torch.tensor(rewards, dtype=torch.float64).std().item(), sum(rewards) / len(rewards)
    for row, credit in zip(steps, result, strict=True):
        for end, value in row:
            credit[end] += (value - mean) / (deviation + EPSILON)
        credit[:] = [*accumulate(reversed(credit))][::-1]
    return result
