"""Data and test of a reward model's training: rows from labelled responses, the held-out split, the figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.prm.examples import StepExample, encode, example_of
from distill.prm.head import probabilities
from distill.prm.labels import Labelled, noisy
from distill.prm.measures import Scored, summary
from distill.prm.scorer import Aggregate, log_aggregate
from distill.randomness import held_out
from distill.turns import rendered
from distill.types import Message


@dataclass(frozen=True, slots=True)
class Lesson:
    """A labelled response and its training row."""

    labelled: Labelled
    row: StepExample


def lessons(
    labelled: Sequence[Labelled],
    tokenizer: Any,
    rule: str,
    messages: Callable[[Labelled], Sequence[Message]],
    longest: int,
) -> tuple[list[Lesson], int]:
    """The rows with a label and at most ``longest`` tokens, each response once, and the number of rows that were too
    long."""
    found: dict[str, Lesson] = {}
    dropped = 0
    for one in labelled:
        prompt = rendered(tokenizer, messages(one))
        row = example_of(one.key, encode(tokenizer, prompt, one.response, rule), one.labels)
        if row is not None and len(row) - 1 > longest:
            dropped += 1
        elif row is not None:
            found.setdefault(f"{one.source} {one.key}", Lesson(one, row))
    return list(found.values()), dropped


def split_heldout(lessons: Sequence[Lesson], share: float, seed: int) -> tuple[list[Lesson], list[Lesson]]:
    """Split into training and held-out lessons; about ``share`` of the structures are held out, each as a whole."""
    held = held_out((lesson.labelled.structure for lesson in lessons), share, seed, "heldout")
    sides: tuple[list[Lesson], list[Lesson]] = ([], [])
    for lesson in lessons:
        sides[lesson.labelled.structure in held].append(lesson)
    return sides


def with_noise(lesson: Lesson, share: float, seed: int) -> Lesson:
    """The lesson with about ``share`` of its labels flipped (`distill.prm.labels.noisy`)."""
    labels = noisy(lesson.labelled, share, seed)
    known = tuple(None if old is None else new for old, new in zip(lesson.row.labels, labels.labels, strict=True))
    return Lesson(labels, replace(lesson.row, labels=known))


def measured(
    network: Any, lessons: Sequence[Lesson], micro_batch_tokens: int, threshold: float, how: Aggregate
) -> Mapping[str, Any]:
    """The figures of the reward model on these lessons (`distill.prm.measures.summary`), in all and by label source."""
    rows = {lesson.row.input_ids: lesson.row for lesson in lessons}  # samples of one problem are often equal
    training = network.training
    found = dict(zip(rows, probabilities(network.eval(), list(rows.values()), micro_batch_tokens), strict=True))
    network.train(training)
    predicted = [found[lesson.row.input_ids] for lesson in lessons]
    scored = [
        Scored(lesson.labelled.structure, row, lesson.labelled.labels, lesson.labelled.correct, log_aggregate(row, how))
        for lesson, row in zip(lessons, predicted, strict=True)
    ]
    by_source: dict[str, list[Scored]] = defaultdict(list)
    for lesson, one in zip(lessons, scored, strict=True):
        by_source[lesson.labelled.source].append(one)
    parts = {source: summary(part, threshold) for source, part in sorted(by_source.items())}
    return {**summary(scored, threshold), **({"by_source": parts} if len(parts) > 1 else {})}
