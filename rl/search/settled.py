"""When a vote needs no more samples: pure functions of the ballots so far.

- ``certain``: the remaining votes cannot change the winner;
- ``beta``: under a uniform prior on the share of the first of the two leading answers among both, it is the likelier
  one with at least the requested confidence (Aggarwal, Madaan, Yang and Mausam 2023, "Let's sample step by step",
  https://arxiv.org/abs/2305.11860: the Beta criterion).

A ballot that is None counts as a vote that was used up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import comb


def leaders(ballots: Sequence[str | None]) -> tuple[int, int]:
    """The votes of the most frequent and of the second most frequent answer."""
    counts = [count for _, count in Counter(b for b in ballots if b is not None).most_common(2)]
    first, second = [*counts, 0, 0][:2]
    return first, second


@lru_cache(1 << 14)
def lead_is_real(first: int, second: int) -> float:
    """P(p > 1/2) for p ~ Beta(first + 1, second + 1), computed exactly as a binomial tail."""
    tosses = first + second + 1
    return sum(comb(tosses, j) for j in range(first + 1)) / 2**tosses


def certain(first: int, second: int, left: int) -> bool:
    """Whether the remaining votes cannot overturn the lead. (On a tie the answer that was given first wins, which may
    be the other.)"""
    return first - second > left or left <= 0


def settled(first: int, second: int, left: int, confidence: float | None) -> bool:
    """Whether the vote is certain or, with a ``confidence``, meets the Beta criterion (once there is a vote)."""
    return certain(first, second, left) or (
        confidence is not None and first > 0 and lead_is_real(first, second) >= confidence
    )


def at_least(first: int, second: int, left: int, confidence: float | None) -> int:
    """How many more votes are needed in any case: as many as would settle it if all went to the leader. They can be
    drawn at once without wasting any."""
    return next(more for more in range(left + 1) if settled(first + more, second, left - more, confidence))
