"""What scores steps, and what the scores of a response come to.

A `StepScorer` is all that a verifier, a dense reward or a search know of a process reward model. Who loads one is
`distill.prm.reading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, Protocol, get_args

from pipeline.errors import InputError

Aggregate = Literal["product", "minimum", "last"]


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
