"""Labelled responses: what a process reward model learns from, whatever said which step is right.

A source of labels is a module of its own beside this one: `exact` (checkers of problem families, and planted slips),
`rollouts` (Monte-Carlo completions of prefixes), `groups` (samples of one problem that begin alike), `imported`
(files). All of them give `Labelled`; here is how labels of spans become labels of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distill.prm.examples import Label
from distill.randomness import generator
from distill.steps import Span, Split
from distill.types import Problem

Marked = tuple[Span, Label]
"""A span of a response, and what is known of it."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """``response`` to ``problem`` with a label for each of its steps. ``source`` says who labelled it, ``trace`` the
    key of the trace that it is, where it is one. ``correct``: its final answer, None where nobody knows."""

    key: str
    problem: Problem
    response: str
    labels: tuple[Label, ...]
    source: str
    trace: str | None = None
    correct: bool | None = None

    @property
    def structure(self) -> str:
        """What a train/held-out split must not cut through."""
        return self.problem.structure or self.problem.prompt


def of_steps(response: str, split: Split, marked: Sequence[Marked]) -> tuple[Label, ...]:
    """Labels of spans as labels of the steps that a rule finds.

    A step of several spans is as right as the worst of them. Of a span that several steps share, each is right where
    it is; where it is wrong nobody knows in which of them, and the last, where the span ends, is told.
    """
    labels: list[Label] = []
    for step in split(response):
        inside = [(span, label) for span, label in marked if span[0] < step.end and step.start < span[1]]
        said = [
            label if span[1] <= step.end or (label is not None and label >= 0.5) else None for span, label in inside
        ]
        known = [label for label in said if label is not None]
        labels.append(min(known) if known and (len(known) == len(said) or min(known) < 0.5) else None)
    return tuple(labels)


def noisy(labelled: Labelled, share: float, seed: int) -> Labelled:
    """The same with about so large a share of its labels turned around, a pure function of the key."""
    draws = generator(seed, "label noise", labelled.key).random(len(labelled.labels))
    turned = [
        label if label is None or draw >= share else 1.0 - label
        for label, draw in zip(labelled.labels, draws, strict=True)
    ]
    return replace(labelled, labels=tuple(turned))
