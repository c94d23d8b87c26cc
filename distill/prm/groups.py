"""Step labels without further sampling: samples of one problem that begin alike show the value of their prefix.

The samples of a GRPO group, or of any problem sampled several times, form a tree of steps. The share of correct samples
among those that pass through a node estimates its value, as rollouts from it would (Math-Shepherd), without sampling a
token. If the samples diverge early, little is known: a step is labelled only if at least ``shared`` samples pass
through it. The last step of each sample is labelled by the sample's own outcome.
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
    """Labels for each step of each member, by key. The members are samples of one problem from one model."""
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
    """The value of a prefix from the outcomes of its samples: the share that is right (soft), or whether any is (hard).
    None if there are fewer than ``least``."""
    if len(outcomes) < max(least, 1):
        return None
    return float(any(outcomes)) if kind == "hard" else sum(outcomes) / len(outcomes)
