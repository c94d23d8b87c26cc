"""Labelled responses, the training data of process reward models, whatever the source of the labels.

Each source of labels is a module beside this one: `exact` (checkers of problem families, and planted errors),
`rollouts` (Monte-Carlo completions of prefixes), `groups` (samples of one problem that begin alike) and `imported`
(files). All of them produce `Labelled`. This module turns labels of spans into labels of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distill.prm.examples import Label
from distill.randomness import generator
from distill.steps import Span, Split
from distill.types import Problem

Marked = tuple[Span, Label]
"""A span of a response, and its label."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A response to a problem with a label for each of its steps. ``source`` names the source of the labels. ``trace``
    is the key of the trace, if the response is one. ``correct`` is about the final answer, None if unknown."""

    key: str
    problem: Problem
    response: str
    labels: tuple[Label, ...]
    source: str
    trace: str | None = None
    correct: bool | None = None

    @property
    def structure(self) -> str:
        """The group that must stay on one side of a train/held-out split."""
        return self.problem.structure or self.problem.prompt


def of_steps(response: str, split: Split, marked: Sequence[Marked]) -> tuple[Label, ...]:
    """Turn labels of spans into labels of the steps of ``split``.

    A step with several spans gets the lowest of their labels. If several steps share a span and it is right, all of
    them are right. If it is wrong, it is unknown which of them is wrong, and only the last, where the span ends, is
    labelled wrong.
    """
    labels: list[Label] = []
    for step in split(response):
        inside = [(span, label) for span, label in marked if span[0] < step.end and step.start < span[1]]
        judged = [
            label if span[1] <= step.end or (label is not None and label >= 0.5) else None for span, label in inside
        ]
        known = [label for label in judged if label is not None]
        labels.append(min(known) if known and (len(known) == len(judged) or min(known) < 0.5) else None)
    return tuple(labels)


def noisy(labelled: Labelled, share: float, seed: int) -> Labelled:
    """The same response with about ``share`` of its labels flipped, as a pure function of its key and ``seed``."""
    draws = generator(seed, "label noise", labelled.key).random(len(labelled.labels))
    turned = [
        label if label is None or draw >= share else 1.0 - label
        for label, draw in zip(labelled.labels, draws, strict=True)
    ]
    return replace(labelled, labels=tuple(turned))
