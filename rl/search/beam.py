"""Beam search over steps: of all steps that were sampled the best go on.

N steps are drawn, a step scorer ranks what there is of each response, the best N/M go on with M steps each, until all
that are left have ended (Snell et al. 2024, https://arxiv.org/abs/2408.03314; Beeching, Tunstall and Rush 2024,
"Scaling test-time compute with open models"). Equal texts are one beam: a model that is sure of its next line says
it M times. Whatever has ended takes its place among the best and is drawn no further.

`Tree` is the engine of the three searches: DVTS and lookahead are other ways to choose, and to score.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import InputError
from rl.search.base import ByScore, Choice, Draft, Need, Piece, Resource, Search, draw, score
from rl.search.ranked import conclude

Scored = tuple[Piece, float]
"""A beginning, and the logarithm of what it is worth."""


class Tree(ByScore):
    """What all searches over steps have."""

    independent: ClassVar[bool] = False
    needs: ClassVar[frozenset[Resource]] = frozenset(("scorer", "steps"))
    width: Annotated[int, Field(ge=2)] = 4
    """M: next steps drawn per beam. A smaller budget is one beam."""
    final: Literal["weighted", "best"] = "weighted"
    """How the final answer is chosen: by a vote weighted by score, or the highest score."""

    def beams(self, samples: int) -> tuple[int, int]:
        """(beams that go on, steps drawn of each)."""
        width = min(self.width, samples)
        if samples % width:
            raise InputError(f"a budget of {samples} samples is no multiple of the search's width, {width}")
        return samples // width, width

    def values(self, pieces: Sequence[Piece]) -> Generator[Need, Any, list[float]]:
        """What each beginning is worth (the logarithm)."""
        return (yield from score(pieces, self.aggregate))

    def grow(self, drafts: Sequence[Draft]) -> Generator[Need, Any, list[Scored]]:
        """The next steps, with what they are worth."""
        pieces = yield from draw(drafts)
        return list(zip(pieces, (yield from self.values(pieces)), strict=True))

    def chosen(self, ended: Sequence[Scored]) -> Choice:
        return conclude([piece for piece, _ in ended], [value for _, value in ended], self.final)


class Beam(Tree):
    """Beam search: the best N/M of all N go on."""

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
    """Each text once, the best first."""
    distinct: dict[str, Scored] = {}
    for piece, value in grown:
        distinct.setdefault(piece.text, (piece, value))
    return sorted(distinct.values(), key=lambda scored: -scored[1])


def next_steps(prefix: str, count: int, begin: int = 0) -> list[Draft]:
    return [Draft(index, prefix, step=True) for index in range(begin, begin + count)]
