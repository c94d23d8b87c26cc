"""What scores steps, and what the scores of a response come to.

A `StepScorer` is all that a verifier, a dense reward or a search know of a process reward model. Who loads one is
`distill.prm.reading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, fsum, inf, log, prod
from typing import Literal, Protocol, get_args

from pipeline.errors import InputError

Aggregate = Literal["product", "minimum", "last"]
VERSION = "2"
"""Goes up whenever the same weights would score the same response otherwise."""
SMALLEST = -600.0
"""Below about this logarithm a double loses digits."""


class StepScorer(Protocol):
    rule: str
    """How it splits a response into steps (`distill.steps.split`)."""

    def score(self, asked: Sequence[tuple[str, str]]) -> list[list[float]]:
        """For each (rendered prompt, response as generated, its think tags included, possibly only begun) the
        probability, in (0, 1), that each of its steps is right. In the order of what was asked; none of a response
        without a step."""
        ...


def aggregate(steps: Sequence[float], how: Aggregate = "product") -> float:
    """One score of a response: the chance that all of its steps are right, if they were independent (Lightman et al.
    2023, https://arxiv.org/abs/2305.20050), the lowest, or the last. A response without a step has nothing to be
    right about: 0."""
    if how not in get_args(Aggregate):
        raise InputError(f"no aggregate is called {how!r}; there are: {', '.join(get_args(Aggregate))}")
    if not steps:
        return 0.0
    return prod(steps) if how == "product" else min(steps) if how == "minimum" else steps[-1]


def log_aggregate(steps: Sequence[float], how: Aggregate = "product") -> float:
    """The logarithm of `aggregate`, to compare responses by: the product of some hundred steps is often no number above
    zero."""
    if how == "product" and steps:
        return fsum(log(step) if step > 0 else -inf for step in steps)
    score = aggregate(steps, how)
    return log(score) if score > 0 else -inf


def weights(logs: Sequence[float]) -> list[float]:
    """Scores from their logarithms; all in terms of the largest where that is too small for a number, and all alike
    where there is nothing to tell them apart by."""
    largest = max(logs, default=0.0)
    if largest == -inf:
        return [1.0] * len(logs)
    shift = largest if largest < SMALLEST else 0.0
    return [exp(value - shift) for value in logs]
