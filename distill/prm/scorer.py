"""The interface of a step scorer, and the aggregation of step scores into one score per response.

Verifiers, dense rewards and search depend only on `StepScorer`. `distill.prm.reading` loads one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, fsum, inf, log, prod
from typing import Literal, Protocol, get_args

from pipeline.errors import InputError

Aggregate = Literal["product", "minimum", "last"]
VERSION = "2"
"""Raised whenever the same weights would give the same response different scores."""
SMALLEST = -600.0
"""`weights` rescales if the largest logarithm is below this, where doubles begin to lose digits."""


class StepScorer(Protocol):
    rule: str
    """The rule for splitting a response into steps (`distill.steps.split`)."""

    def score(self, asked: Sequence[tuple[str, str]]) -> list[list[float]]:
        """The probability, in (0, 1), that each step is right, for each (rendered prompt, response) in order.

        A response is the generated text, with its think tags; it may be incomplete. Without steps it has no
        probabilities.
        """
        ...


def aggregate(steps: Sequence[float], how: Aggregate = "product") -> float:
    """One score for a response: the product, the minimum or the last of its steps' probabilities; 0 without steps.

    The product is the probability that all steps are right if they are independent (Lightman et al. 2023,
    https://arxiv.org/abs/2305.20050).
    """
    if how not in get_args(Aggregate):
        raise InputError(f"no aggregate is called {how!r}; there are: {', '.join(get_args(Aggregate))}")
    if not steps:
        return 0.0
    return prod(steps) if how == "product" else min(steps) if how == "minimum" else steps[-1]


def log_aggregate(steps: Sequence[float], how: Aggregate = "product") -> float:
    """The logarithm of `aggregate`, for comparing responses. The product of some hundred steps often underflows."""
    if how == "product" and steps:
        return fsum(log(step) if step > 0 else -inf for step in steps)
    score = aggregate(steps, how)
    return log(score) if score > 0 else -inf


def weights(logs: Sequence[float]) -> list[float]:
    """Scores from their logarithms. If the largest is too small for a double, all are scaled by it; if all scores are
    zero, all weights are 1."""
    largest = max(logs, default=0.0)
    if largest == -inf:
        return [1.0] * len(logs)
    shift = largest if largest < SMALLEST else 0.0
    return [exp(value - shift) for value in logs]
