"""Divide a total of tokens among many problems: each gets one answer, then more where the vote is not settled.

The next sample goes to the problem with the fewest samples; among these, to the one whose vote is least settled. So
what is saved on easy problems raises the limit of all hard ones alike, and no hopeless problem takes it all. Spending
ends where one more answer, as long as the longest so far, might not fit.

It is one search over all problems, and a pure function of their samples. The total is ``tokens``, or what the budget
would take uniformly: the tokens of the first answers times the budget.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Any, ClassVar

from pydantic import Field

from pipeline.errors import InputError
from rl.search.adaptive import Stop
from rl.search.base import Choice, Draft, Piece, Resource
from rl.search.settled import lead_is_real, leaders, settled
from rl.search.vote import elect

Wanted = list[tuple[int, Draft]]
"""(number of the problem, the sample requested of it)."""
JointSearch = Generator[Wanted, Any, list[Choice]]


class Allocation(Stop):
    """Adaptive self-consistency under one total for all problems."""

    independent: ClassVar[bool] = True
    needs: ClassVar[frozenset[Resource]] = frozenset()
    most: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of samples per problem. Default: as many as there are."""
    tokens: Annotated[int, Field(ge=1)] | None = None
    """Total of sampled tokens. Default: the budget's samples times the tokens of one answer to each problem."""

    def search_all(self, problems: int, samples: int, stored: int) -> JointSearch:
        """Search problems that have ``stored`` samples each, with the tokens that ``samples`` of each would take."""
        most = min(self.most or stored, stored)
        drawn: list[list[Piece]] = [[] for _ in range(problems)]
        spent = yield from _draw(drawn, list(range(problems)))
        total = self.tokens or samples * spent
        if total < spent:
            raise InputError(
                f"allocate: a total of {total:,} tokens is less than one answer to each of the {problems} problems "
                f"takes ({spent:,})"
            )
        while wanted := self._next(drawn, most, total - spent):
            spent += yield from _draw(drawn, wanted)
        return [elect(pieces) for pieces in drawn]

    def _next(self, drawn: list[list[Piece]], most: int, left: int) -> list[int]:
        """The problems that get one more sample each: all that have the fewest, as far as the remaining tokens go."""
        open_ = [number for number, pieces in enumerate(drawn) if not self._ended(pieces, most)]
        fewest = min((len(drawn[number]) for number in open_), default=0)
        level = [number for number in open_ if len(drawn[number]) == fewest]
        longest = max(piece.tokens for pieces in drawn for piece in pieces) or 1
        return sorted(level, key=lambda number: _certainty(drawn[number]))[: max(0, left) // longest]

    def _ended(self, pieces: list[Piece], most: int) -> bool:
        return settled(*leaders([p.ballot for p in pieces]), most - len(pieces), self.asked)


def _certainty(pieces: list[Piece]) -> float:
    return lead_is_real(*leaders([piece.ballot for piece in pieces]))


def _draw(drawn: list[list[Piece]], numbers: list[int]) -> Generator[Wanted, Any, int]:
    """Draw one more sample of each; returns the tokens that they took."""
    pieces: list[Piece] = yield [(number, Draft(len(drawn[number]))) for number in numbers]
    for number, piece in zip(numbers, pieces, strict=True):
        drawn[number].append(piece)
    return sum(piece.tokens for piece in pieces)
