"""Monte-Carlo step labels from completions of prefixes (Math-Shepherd, https://arxiv.org/abs/2312.08935).

A policy completes a prefix of a response several times, and a verifier judges the results. Completions and verdicts are
stored like any others, under keys that include the prefix. Nothing is therefore sampled twice, not even by another
stage or after a kill.

``every`` completes every prefix. ``first_error`` finds, by binary search, the first step after which no completion is
correct (OmegaPRM, https://arxiv.org/abs/2406.06592): it needs log2 of the number of steps, and only for wrong
responses. The steps before it are labelled right, it is labelled wrong, and those after it have no label. The search
assumes that a wrong prefix stays wrong and that the policy can solve the problem. If the policy cannot, the first step
is labelled wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from distill.prm.examples import Label
from distill.prm.groups import value_of
from distill.prm.labels import Labelled
from distill.steps import Split, Step
from distill.thinking import opened_twice
from distill.types import Problem

LINE_END = re.compile(r"\s*\n")
Prefix = tuple[str, str]
"""The key of a problem, and the start of a response to it."""

Outcomes = Callable[[Sequence[Prefix]], Mapping[Prefix, Sequence[bool]]]
"""Completes prefixes, all at once, and returns whether each completion is correct; unjudged ones are left out."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A response whose final answer was judged."""

    key: str
    problem_key: str
    problem: Problem
    response: str
    correct: bool
    prompt: str = ""
    """The prompt as the model saw it, if known."""


def every(tried: Sequence[Tried], split: Split, kind: Literal["hard", "soft"], outcomes: Outcomes) -> list[Labelled]:
    """Label each step by completions of the prefix that it ends, and the last step by the response's own outcome."""
    steps = {one.key: split(one.response) for one in tried}
    found = outcomes([_prefix(one, step) for one in tried for step in steps[one.key][:-1]])
    return [
        _labelled(one, [*(value_of(found[_prefix(one, s)], kind) for s in steps[one.key][:-1]), float(one.correct)])
        for one in tried
        if steps[one.key]
    ]


def first_error(tried: Sequence[Tried], split: Split, outcomes: Outcomes) -> list[Labelled]:
    """Label the steps up to the first error, found by binary search. All responses advance their searches together."""
    searches = [_Search(one, split(one.response)) for one in tried]
    searches = [search for search in searches if search.steps]
    while asking := [search for search in searches if not search.over]:
        found = outcomes([search.prefix for search in asking])
        for search in asking:
            search.update(found[search.prefix])
    return [_labelled(search.tried, search.labels()) for search in searches]


@dataclass
class _Search:
    """The search in one wrong response: the first error is after step ``low`` (counted from 1) and at most at step
    ``high``."""

    tried: Tried
    steps: Sequence[Step]
    low: int = 0
    high: int = field(init=False)

    def __post_init__(self) -> None:
        self.high = len(self.steps)

    lost: bool = False
    """No completion of a prefix could be judged, so the side of the error is unknown."""

    @property
    def over(self) -> bool:
        return self.tried.correct or self.lost or self.high - self.low <= 1

    @property
    def prefix(self) -> Prefix:
        return _prefix(self.tried, self.steps[(self.low + self.high) // 2 - 1])

    def update(self, outcomes: Sequence[bool]) -> None:
        """Halve the range. A prefix with a correct completion has no error in it."""
        middle = (self.low + self.high) // 2
        if not outcomes:
            self.lost = True
        elif any(outcomes):
            self.low = middle
        else:
            self.high = middle

    def labels(self) -> list[Label]:
        if self.tried.correct:
            return [1.0] * len(self.steps)
        if self.lost:
            return [1.0] * self.low + [None] * (len(self.steps) - self.low)
        return [1.0] * self.low + [0.0] + [None] * (len(self.steps) - self.high)


def _prefix(tried: Tried, step: Step) -> Prefix:
    """The response up to the end of the step's last line; completions might otherwise continue that line. An opening
    tag that the prompt already has is left out."""
    begin, end = opened_twice(tried.prompt, tried.response), LINE_END.match(tried.response, step.end)
    return tried.problem_key, tried.response[begin : end.end() if end else step.end]


def _labelled(tried: Tried, labels: Sequence[Label]) -> Labelled:
    return Labelled(
        tried.key, tried.problem, tried.response, tuple(labels), "rollouts", tried.key, tried.correct
    )  # fmt: skip
