"""Labels for nothing: samples of one problem that begin alike tell what their beginning is worth.

The samples of a GRPO group, or of any problem sampled several times, make a tree of steps. The share of right ones
among those that go through a node estimates its value, as roll-outs from it would (Math-Shepherd), without a token.
Where the samples part at once little is known: a step is labelled where at least ``shared`` samples go through it,
and the last step of each by its own outcome.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from distill.prm.examples import Label
from distill.steps import Split


class Member(NamedTuple):
    response: str
    correct: bool


def tree_labels(
    members: Mapping[str, Member], split: Split, kind: Literal["hard", "soft"] = "soft", shared: int = 2
) -> dict[str, tuple[Label, ...]]:
    """The samples of one problem, from one model, by key -> a label for each step of each."""
    steps = {key: tuple(step.text for step in split(member.response)) for key, member in members.items()}
    through: dict[tuple[str, ...], list[bool]] = defaultdict(list)
    for key, path in steps.items():
        for k in range(1, len(path) + 1):
            through[path[:k]].append(members[key].correct)
    return {
        key: tuple(
            float(members[key].correct) if k == len(path) else value_of(through[path[:k]], kind, shared)
            for k in range(1, len(path) + 1)
        )
        for key, path in steps.items()
    }


def value_of(outcomes: Sequence[bool], kind: Literal["hard", "soft"], least: int = 1) -> Label:
    """What a prefix is worth by what came of it: the share that is right (soft), or whether any is (hard); None where
    fewer than ``least`` went through it."""
    if len(outcomes) < max(least, 1):
        return None
    return float(any(outcomes)) if kind == "hard" else sum(outcomes) / len(outcomes)
