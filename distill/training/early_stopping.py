"""Early stopping: a measure on held-out data before the first step and every so many, the best weights kept, an end
when nothing gets better.

What is measured is the caller's. The state is tensors beside the weights in each checkpoint, so a run that
is killed ends at the same step with the same weights as one that is not. The best weights are a copy of
all that is trained, in the machine's memory: little for LoRA, as much again as the model for full fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.training.batching import Example
from distill.training.learner import Learner
from distill.training.passes import Row

Measure = Callable[[Learner], tuple[float, Mapping[str, float]]]
"""What counts, the lower the better, and the figures to be told, by their names in `StepMetrics`."""


@dataclass(frozen=True, slots=True)
class Heldout:
    """``measure`` is taken at step 0, every ``every`` steps and at the end. After ``patience`` measurements in a row
    without a better one training ends; None: it never does, and just the best weights are kept."""

    measure: Measure
    every: int
    patience: int | None = None


class Best:
    """The best weights so far; those of the start only while every other was worse, for a share of few problems is
    often equal, and who trains wants what is trained. ``state`` is what `state` gave of an earlier attempt, or nothing.
    """

    def __init__(self, heldout: Heldout | None, learner: Learner, state: Mapping[str, Tensor]) -> None:
        self._heldout, self._learner = heldout, learner
        self._value, step, misses = state.get("best", torch.tensor([math.inf, 0, 0], dtype=torch.float64)).tolist()
        self.step, self._misses = int(step), int(misses)
        self._weights = [state[f"best.{i}"] for i in range(len(learner.weights))] if self.known else []

    @property
    def known(self) -> bool:
        """Whether anything was measured."""
        return math.isfinite(self._value)

    @property
    def over(self) -> bool:
        """Whether training has nothing more to gain."""
        patience = self._heldout.patience if self._heldout else None
        return patience is not None and self._misses >= patience

    def look(self) -> Mapping[str, Any]:
        """Before the first update and after each: measure, if it is time. Returns the figures."""
        done, learner = self._learner.done, self._learner
        if self._heldout is None or (done % self._heldout.every and done < learner.total):
            return {}
        value, figures = self._heldout.measure(learner)
        if value < self._value or (value == self._value and self.step == 0):
            self._value, self.step, self._misses = value, done, 0
            learner.gather()
            self._weights = [weight.detach().to("cpu", copy=True) for weight in learner.weights]
        else:
            self._misses += 1
        return figures

    def state(self) -> dict[str, Tensor]:
        if self._heldout is None:
            return {}
        best = torch.tensor([self._value, self.step, self._misses], dtype=torch.float64)
        return {"best": best, **{f"best.{i}": weight for i, weight in enumerate(self._weights)}}

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best weights into the model, if any were measured."""
        self._learner.gather()
        for weight, best in zip(self._learner.weights, self._weights, strict=bool(self._weights)):
            weight.copy_(best)


def heldout_loss(learner: Learner, examples: Sequence[Example]) -> float:
    """Mean cross-entropy over the supervised tokens, nats, under the present weights."""
    scored = [row.logprobs for row in learner.score([Row(example, {}) for example in examples])]
    return -math.fsum(map(math.fsum, scored)) / sum(map(len, scored))
