"""Beam search over steps: the best of all sampled steps continue.

N steps are drawn, a step scorer ranks the responses so far, and the best N/M continue with M steps each, until all
that are left have ended (Snell et al. 2024, https://arxiv.org/abs/2408.03314; Beeching, Tunstall and Rush 2024,
"Scaling test-time compute with open models"). Equal texts are one beam: a model that is sure of its next line writes
it M times. A finished response keeps its place among the best and is not continued.

`Tree` is the base of all three searches over steps: DVTS chooses differently, lookahead scores differently.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import InputError
from rl.search.base import ByScore, Choice, Draft, Need, Piece, Resource, Search, draw, score
from rl.search.ranked import conclude

Scored = tuple[Piece, float]
"""A partial response, and the logarithm of its value."""


class Tree(ByScore):
    """The settings and methods of all searches over steps."""

    independent: ClassVar[bool] = False
    needs: ClassVar[frozenset[Resource]] = frozenset(("scorer", "steps"))
    width: Annotated[int, Field(ge=2)] = 4
    """M: next steps drawn per beam. A smaller budget is one beam."""
    final: Literal["weighted", "best"] = "weighted"
    """How the final answer is chosen: by a vote weighted by score, or the highest score."""

    def beams(self, samples: int) -> tuple[int, int]:
        """(beams that continue, steps drawn for each)."""
        width = min(self.width, samples)
        if samples % width:
            raise InputError(f"a budget of {samples} samples is not a multiple of the search's width, {width}")
        return samples // width, width

    def values(self, pieces: Sequence[Piece]) -> Generator[Need, Any, list[float]]:
        """The logarithm of the value of each partial response."""
        return (yield from score(pieces, self.aggregate))

    def grow(self, drafts: Sequence[Draft]) -> Generator[Need, Any, list[Scored]]:
        """Draw the next steps; returns them with their values."""
        pieces = yield from draw(drafts)
        return list(zip(pieces, (yield from self.values(pieces)), strict=True))

    def chosen(self, ended: Sequence[Scored]) -> Choice:
        return conclude([piece for piece, _ in ended], [value for _, value in ended], self.final)


class Beam(Tree):
    """Beam search: the best N/M of all N steps continue."""

    def search(self, samples: int) -> Search:
        keep, width = self.beams(samples)
        ended: list[Scored] = []
        drafts = next_steps("", samples)
        while drafts:
            best = ranked((yield from self.grow(drafts)))[: keep - len(ended)]
            ended += [scored for scored in best if scored[0].over]
            drafts = [d for piece, _ in best if not piece.over for d in next_steps(piece.text, width)]
        return self.chosen(ended)


def ranked(grown: Sequence[Scored]) -> list[Scored]:
    """Each distinct text once, the best first."""
    distinct: dict[str, Scored] = {}
    for piece, value in grown:
        distinct.setdefault(piece.text, (piece, value))
    return sorted(distinct.values(), key=lambda scored: -scored[1])


def next_steps(prefix: str, count: int, begin: int = 0) -> list[Draft]:
    return [Draft(index, prefix, step=True) for index in range(begin, begin + count)]
