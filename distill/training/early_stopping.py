"""Early stopping: measure on held-out data before the first step and every few steps, keep the best weights, and stop
when nothing improves.

The caller decides what is measured. The state is tensors beside the weights in each checkpoint, so a killed
and resumed run ends at the same step with the same weights as an uninterrupted one. The best weights are a copy of
all that is trained, in main memory: little for LoRA, as much again as the model for full fine-tuning.
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
"""Returns the value to minimise, and the figures to report, by their names in `StepMetrics`."""


@dataclass(frozen=True, slots=True)
class Heldout:
    """``measure`` is called at step 0, every ``every`` steps and at the end. Training ends after ``patience``
    measurements in a row without improvement; with None it never does, and only the best weights are kept."""

    measure: Measure
    every: int
    patience: int | None = None


class Best:
    """The best weights so far. Trained weights that measure the same as the initial ones replace them: a pass rate over
    few problems is often equal, and whoever trains wants what was trained. ``state`` is what `state` returned in an
    earlier attempt, or empty.
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
        """Whether ``patience`` measurements in a row have brought no improvement."""
        patience = self._heldout.patience if self._heldout else None
        return patience is not None and self._misses >= patience

    def measure_if_due(self) -> Mapping[str, Any]:
        """Measure if it is time to, and return the figures. Call it before the first update and after each."""
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
    """Mean cross-entropy over the supervised tokens, in nats, under the current weights."""
    scored = [row.logprobs for row in learner.score([Row(example, {}) for example in examples])]
    return -math.fsum(map(math.fsum, scored)) / sum(map(len, scored))
