"""Monte-Carlo labels: what comes of going on from each prefix (Math-Shepherd, https://arxiv.org/abs/2312.08935).

A prefix of a response is given to a policy as the beginning of its own, and completed so many times; a verifier says
what came of it. The completions are traces and their verdicts verdicts like any others, under keys that know the
prefix, so nothing is ever rolled out twice, also by another stage or after a kill.

``every`` rolls out from every prefix. ``first_error`` looks for the first step after which nothing ends well, by
binary search (OmegaPRM, https://arxiv.org/abs/2406.06592): log2 of the steps in place of all of them, and only for
responses that are wrong. Steps before it are right, it is wrong, and of those after it nothing is said. It takes for
granted that a spoiled prefix stays spoiled, and that the policy can solve the problem: of one that it cannot the first
step is told to be wrong.
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
"""The key of a problem, and the beginning of a response to it."""

Outcomes = Callable[[Sequence[Prefix]], Mapping[Prefix, Sequence[bool]]]
"""What came of completing prefixes, for all of them at a time: the judged completions alone."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A response whose final answer was judged."""

    key: str
    problem_key: str
    problem: Problem
    response: str
    correct: bool
    prompt: str = ""
    """As its model saw it, where that is known."""


def every(tried: Sequence[Tried], split: Split, kind: Literal["hard", "soft"], outcomes: Outcomes) -> list[Labelled]:
    """A label for each step by completions of the prefix that it ends; the last step's by the response's own end."""
    steps = {one.key: split(one.response) for one in tried}
    found = outcomes([_prefix(one, step) for one in tried for step in steps[one.key][:-1]])
    return [
        _labelled(one, [*(value_of(found[_prefix(one, s)], kind) for s in steps[one.key][:-1]), float(one.correct)])
        for one in tried
        if steps[one.key]
    ]


def first_error(tried: Sequence[Tried], split: Split, outcomes: Outcomes) -> list[Labelled]:
    """Labels up to the first error, found by halving; all responses take their next step of the search together."""
    searches = [_Search(one, split(one.response)) for one in tried]
    searches = [search for search in searches if search.steps]
    while asking := [search for search in searches if not search.over]:
        found = outcomes([search.prefix for search in asking])
        for search in asking:
            search.heard(found[search.prefix])
    return [_labelled(search.tried, search.labels()) for search in searches]


@dataclass
class _Search:
    """The first error of a wrong response is after step ``low`` (counted from 1) and not after step ``high``."""

    tried: Tried
    steps: Sequence[Step]
    low: int = 0
    high: int = field(init=False)

    def __post_init__(self) -> None:
        self.high = len(self.steps)

    lost: bool = False
    """Nobody could judge what came of a prefix, so there is no telling on which side of it the error is."""

    @property
    def over(self) -> bool:
        return self.tried.correct or self.lost or self.high - self.low <= 1

    @property
    def prefix(self) -> Prefix:
        return _prefix(self.tried, self.steps[(self.low + self.high) // 2 - 1])

    def heard(self, outcomes: Sequence[bool]) -> None:
        """A prefix from which something ends well is sound."""
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
    """Up to the end of the step's last line, which completions would write on else; thinking that the prompt opens is
    not opened again."""
    begin, end = opened_twice(tried.prompt, tried.response), LINE_END.match(tried.response, step.end)
    return tried.problem_key, tried.response[begin : end.end() if end else step.end]


def _labelled(tried: Tried, labels: Sequence[Label]) -> Labelled:
    return Labelled(
        tried.key, tried.problem, tried.response, tuple(labels), "rollouts", tried.key, tried.correct
    )  # fmt: skip
