"""From tokens to micro-batches: what is supervised, and which rows share a step.

An `Example` is a row of token ids with a mask of the tokens to learn. The order of a run is a pure
function of (seed, epoch), so a resumed run needs no cursor but its step. Rows of similar length share
a batch (within a window of the shuffled epoch), because attention works on rectangles
(`distill.training.attention`); everything else works on packed tokens and never sees padding.
Rows without a supervised token are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from distill.randomness import permutation, shuffled
from pipeline.errors import InputError

WINDOW = 8
"""Batches per window within which rows are grouped by length: large enough to waste little, still random."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row. ``labels_mask[t]`` marks token ``t`` as learned, that is predicted from the tokens before it.

    The first token of a row has nothing before it and is never learned.
    """

    key: str
    input_ids: tuple[int, ...]
    labels_mask: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.labels_mask):
            raise InputError(f"example {self.key}: {len(self.input_ids)} ids, {len(self.labels_mask)} labels")
        if not any(self.labels_mask[1:]):
            raise InputError(f"example {self.key}: no supervised token, nothing could be learned from it")

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first learned one: rows with equal prompts may compute them once."""
        return self.input_ids[: self.labels_mask.index(True, 1)]

    @property
    def supervised(self) -> int:
        return sum(self.labels_mask[1:])


def from_tokens(key: str, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Example:
    """A row from the exact ids that an engine saw and sampled (end token included), without re-tokenising."""
    mask = (False,) * len(prompt_ids) + (True,) * len(response_ids)
    return Example(key, (*prompt_ids, *response_ids), mask)


@dataclass(frozen=True)
class Order:
    """Which rows make up the batch of a global step: a pure function of (seed, step)."""

    lengths: tuple[int, ...]
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __call__(self, step: int) -> list[int]:
        """Indices of the rows of ``step``; every row once per epoch, the last batch may be short."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return _epoch(self, epoch)[position]


@lru_cache(maxsize=2)
def _epoch(order: Order, epoch: int) -> list[list[int]]:
    rows = permutation(len(order.lengths), order.seed, "order", epoch)
    span = order.batch_size * WINDOW
    batches = []
    for start in range(0, len(rows), span):
        window = sorted(rows[start : start + span], key=lambda row: order.lengths[row])
        batches += [window[i : i + order.batch_size] for i in range(0, len(window), order.batch_size)]
    return shuffled(batches, order.seed, "batches", epoch)


def micro_batches(examples: Sequence[Example], max_tokens: int, shares: int = 1) -> list[list[int]]:
    """Cut rows, sorted by length, into even micro-batches of about ``max_tokens`` (up to one row more).

    Rows with the same prompt stay together, so that it counts once (`distill.training.prefixes`), except where a cut
    falls among them. The number of micro-batches is a multiple of ``shares``, which work in parallel, unless there
    are too few rows. The cut changes no gradient beyond rounding: losses are normalised by the whole step.
    """
    prompts = [example.prompt for example in examples]
    longest: dict[tuple[int, ...], int] = {}
    for prompt, example in zip(prompts, examples, strict=True):
        longest[prompt] = max(longest.get(prompt, 0), len(example))
    order = sorted(range(len(examples)), key=lambda row: (longest[prompts[row]], prompts[row], len(examples[row]), row))
    costs = [len(examples[row]) for row in order]
    for index in range(1, len(order)):
        if prompts[order[index]] == prompts[order[index - 1]]:
            costs[index] -= len(prompts[order[index]])
    total = sum(costs)
    count = math.ceil(total / max_tokens / shares) * shares
    runs: list[list[int]] = [[] for _ in range(count)]
    before = 0
    for row, cost in zip(order, costs, strict=True):
        runs[(2 * before + cost) * count // (2 * total)].append(row)  # by the position of the row's middle
        before += cost
    return [run for run in runs if run]
