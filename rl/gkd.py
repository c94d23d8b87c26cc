"""The batches of generalised knowledge distillation: a teacher's traces, or the student's own samples.

GKD is `distill.training.loop.train` with another measure (`distill.training.divergence`) and these batches. A
step is on-policy with probability lambda; then the current student answers the prompts of its rows
(Agarwal et al. 2023, algorithm 1). Whether a step is on-policy is a function of (seed, step), and the samples are
one of (seed, request key, weights), so a killed run resumes to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from distill.prompting import Ask, plainly
from distill.randomness import generator
from distill.training.batching import Example, Order, from_tokens
from distill.training.loop import StepMetrics
from distill.types import Completion, Problem, Sampling
from rl.grpo import Policy, complete, request
from rl.monitors import SampleMetrics


@dataclass(frozen=True, slots=True)
class GkdMetrics:
    """The metrics of a step: those of its training, and those of its samples if it had any."""

    step: int
    training: StepMetrics
    samples: SampleMetrics | None


@dataclass(frozen=True)
class Batches:
    """A `distill.training.loop.BatchSource`. ``examples`` are the teacher's traces, ``problems`` what they answer.

    Requests and rows have the same names as in GRPO. ``recall`` is that of `rl.grpo.train_grpo`, and ``on_samples``
    corresponds to its ``on_rollouts``; both count steps from 0.
    """

    examples: Sequence[Example]
    problems: Sequence[Problem]
    order: Order
    policy: Policy
    sampling: Sampling
    on_policy: float
    stop: Callable[[], bool]
    ask: Ask = plainly
    recall: Callable[[int], Iterable[Completion]] = lambda step: ()
    on_samples: Callable[[int, Sequence[tuple[Problem, Completion]]], None] = lambda step, samples: None

    def __call__(self, step: int) -> list[Example]:
        rows = self.order(step)
        if float(generator(self.order.seed, "on-policy", step).random()) >= self.on_policy:
            return [self.examples[row] for row in rows]
        asked = {self.problems[row].id: self.problems[row] for row in rows}
        self.policy.refresh()
        problems = list(asked.values())
        requests = [request(self.sampling, step, problem, 0, self.ask) for problem in problems]
        made = complete(self.policy, requests, self.recall(step), self.stop)
        samples = list(zip(problems, made, strict=True))
        self.on_samples(step, samples)
        return [from_tokens(c.key, c.prompt_ids, c.token_ids) for _, c in samples if c.token_ids]
