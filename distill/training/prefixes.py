"""Which tokens of a micro-batch are computed at all, and which are computed once for several rows.

Rows that start with the same tokens, none of them learned (samples of one prompt, a system prompt, few-shot
examples), have the same states there, so the network runs over that prefix once. The prefixes of a micro-batch
form a tree. A `Segment` is what is computed together, a shared prefix or the rest of a row, and names the
segments before it. Tokens after the last one that predicts a learned token (the end token) are left out.
This module knows only tuples of ids; `distill.training.forward` lays them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from distill.training.batching import Example

WORTH = 16
"""A prefix is shared if that saves at least 1 / WORTH of the tokens of its rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Positions first..last of one row, or of all ``rows`` (indices) that share them.

    ``before`` are the segments that hold the positions up to ``first``, in order.
    """

    ids: tuple[int, ...]
    first: int
    rows: tuple[int, ...]
    before: tuple[Segment, ...]

    @property
    def last(self) -> int:
        return self.first + len(self.ids)


def segments(examples: Sequence[Example]) -> list[Segment]:
    """The segments of a micro-batch: those with nothing before them first, then by their last position."""
    prompts = [example.prompt for example in examples]
    order = sorted(range(len(examples)), key=prompts.__getitem__)
    return sorted(_subtree(examples, prompts, order, ()), key=lambda s: (bool(s.before), s.last, len(s.ids)))


def _subtree(
    examples: Sequence[Example], prompts: Sequence[tuple[int, ...]], rows: Sequence[int], before: tuple[Segment, ...]
) -> Iterator[Segment]:
    """The segments of ``rows`` (sorted by prompt) that follow ``before``, the segments that they all share."""
    first = before[-1].last if before else 0
    if len(rows) == 1:
        computed = _computed(examples[rows[0]])
        if computed > first:
            yield Segment(examples[rows[0]].input_ids[first:computed], first, tuple(rows), before)
        return
    common = _common(prompts[rows[0]], prompts[rows[-1]])
    whole = sum(len(examples[row]) - first for row in rows)
    if WORTH * (common - first) * (len(rows) - 1) >= whole:
        beginning = Segment(prompts[rows[0]][first:common], first, tuple(rows), before)
        yield beginning
        before = (*before, beginning)
    for following, group in groupby(rows, key=lambda row: prompts[row][common : common + 1]):
        for part in [tuple(group)] if following else ((row,) for row in group):
            yield from _subtree(examples, prompts, part, before)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _computed(example: Example) -> int:
    """The number of positions up to the last one that predicts a learned token."""
    return len(example) - 1 - example.labels_mask[::-1].index(True)
