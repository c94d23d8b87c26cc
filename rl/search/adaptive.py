"""Adaptive self-consistency: draw votes until the vote is settled, at most as many as the budget.

Each problem is decided from its own samples alone: easy ones stop after a few. `rl.search.allocation` divides a total
among problems instead.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.stage import Settings
from rl.search.base import Piece, Resource, Search, draw, whole
from rl.search.settled import at_least, leaders
from rl.search.vote import elect


class Stop(Settings):
    """When a vote is settled."""

    stop: Literal["beta", "certain"] = "beta"
    """`certain`: the remaining samples cannot change the winner. `beta`: of the two leading answers, the leader is the
    likelier one with this confidence."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95

    @property
    def asked(self) -> float | None:
        return self.confidence if self.stop == "beta" else None


class AdaptiveVote(Stop):
    """A majority that stops early: as soon as the vote is settled."""

    independent: ClassVar[bool] = True
    needs: ClassVar[frozenset[Resource]] = frozenset()

    def search(self, samples: int) -> Search:
        pieces: list[Piece] = []
        while more := at_least(*leaders([p.ballot for p in pieces]), samples - len(pieces), self.asked):
            pieces += yield from draw(whole(more, len(pieces)))
        return elect(pieces)
