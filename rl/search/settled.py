"""When a vote needs no more votes: pure functions of the ballots that are in.

- ``certain``: no outcome of the votes that are left can change the winner;
- ``beta``: under a uniform prior on how often the first of the two leading answers is given when one of them is, it is
  the likelier one with at least the confidence asked for (Aggarwal, Madaan, Yang and Mausam 2023, "Let's sample step
  by step", https://arxiv.org/abs/2305.11860: the Beta criterion).

A ballot that is None counts as a vote that was used up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import comb


def leaders(ballots: Sequence[str | None]) -> tuple[int, int]:
    """Votes of the most and of the second most frequent answer."""
    counts = [count for _, count in Counter(b for b in ballots if b is not None).most_common(2)]
    first, second = [*counts, 0, 0][:2]
    return first, second


@lru_cache(1 << 14)
def lead_is_real(first: int, second: int) -> float:
    """P(p > 1/2) for p ~ Beta(first + 1, second + 1): exact, as the binomial tail that it is."""
    tosses = first + second + 1
    return sum(comb(tosses, j) for j in range(first + 1)) / 2**tosses


def certain(first: int, second: int, left: int) -> bool:
    """Whether the votes that are left cannot overturn the lead. (Level at the end, the one given first wins, which
    may be the other.)"""
    return first - second > left or left <= 0


def settled(first: int, second: int, left: int, confidence: float | None) -> bool:
    """By certainty; with a ``confidence`` by the Beta criterion too, once there is a vote."""
    return certain(first, second, left) or (
        confidence is not None and first > 0 and lead_is_real(first, second) >= confidence
    )


def at_least(first: int, second: int, left: int, confidence: float | None) -> int:
    """How many more votes are needed whatever they say: as many as would settle it if all went to the leader. So many
    can be asked for at once, none in vain."""
    return next(more for more in range(left + 1) if settled(first + more, second, left - more, confidence))
