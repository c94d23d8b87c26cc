"""Which tokens of a micro-batch are computed at all, and which of them once for several rows.

Rows that begin with the same tokens, none of them learned (samples of one prompt, a system prompt, examples
shown to all), see the same there, so the network runs over that beginning once. The beginnings of
a micro-batch make a tree: a `Segment` is what is computed together, a beginning or the rest of a row,
and names the segments that come before it. Tokens after the last one that predicts anything
learned (the end token) are left out. Knows tuples of ids alone; laid out by `distill.training.forward`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from distill.training.batching import Example

WORTH = 16
"""A beginning is shared where that leaves out at least 1 / WORTH of the tokens of its rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Positions first..last of a row, or of all the ``rows`` (indices) that share them.

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
    return sorted(_grown(examples, prompts, order, ()), key=lambda s: (bool(s.before), s.last, len(s.ids)))


def _grown(
    examples: Sequence[Example], prompts: Sequence[tuple[int, ...]], rows: Sequence[int], before: tuple[Segment, ...]
) -> Iterator[Segment]:
    """The segments of ``rows``, sorted by prompt, after those that they share already."""
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
            yield from _grown(examples, prompts, part, before)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids at their start are equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _computed(example: Example) -> int:
    """Positions up to the last one that predicts a learned token."""
    return len(example) - 1 - example.labels_mask[::-1].index(True)
