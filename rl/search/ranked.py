"""Whole responses, ranked: best-of-N by a process reward model or a verifier, and the vote that a PRM weighs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from distill.prm.scorer import Aggregate
from pipeline.stage import Settings
from rl.search.base import Choice, Piece, Resource, Search, draw, judge, score, whole
from rl.search.vote import elect


class BestOf(Settings):
    """Best-of-N: the response that scores highest, or the first that the verifier accepts.

    By PRM: Lightman et al. 2023, https://arxiv.org/abs/2305.20050. By verifier: what a perfect judge of answers could
    make of the samples. Under a weak PRM it falls as N grows: the maximum goes to whatever the PRM is wrong about.
    """

    independent: ClassVar[bool] = True
    by: Literal["prm", "verifier"] = "prm"
    aggregate: Aggregate = "product"
    """What the step probabilities of a response come to."""

    @property
    def needs(self) -> frozenset[Resource]:
        return frozenset((self.by,))

    def search(self, samples: int) -> Search:
        pieces = yield from draw(whole(samples))
        if self.by == "verifier":
            return best(pieces, [float(right) for right in (yield from judge(pieces))])
        return best(pieces, (yield from score(pieces, self.aggregate)))


class WeightedVote(Settings):
    """A vote in which each answer has the sum of its responses' scores.

    Also known as weighted best-of-N (Li et al. 2022, https://arxiv.org/abs/2206.02336; Beeching et al. 2024).
    """

    independent: ClassVar[bool] = True
    aggregate: Aggregate = "product"
    """What the step probabilities of a response come to."""

    @property
    def needs(self) -> frozenset[Resource]:
        return frozenset(("prm",))

    def search(self, samples: int) -> Search:
        pieces = yield from draw(whole(samples))
        return elect(pieces, (yield from score(pieces, self.aggregate)))


def best(pieces: Sequence[Piece], scores: Sequence[float]) -> Choice:
    """The highest score, among those that have an answer if any has; the first of equal ones."""
    able = [at for at, piece in enumerate(pieces) if piece.ballot is not None] or range(len(pieces))
    at = max(able, key=lambda index: scores[index])
    ballot = pieces[at].ballot
    return Choice(pieces[at], () if ballot is None else ((ballot, scores[at]),))


def conclude(pieces: Sequence[Piece], scores: Sequence[float], final: Literal["weighted", "best"]) -> Choice:
    """How a search step by step chooses among the responses it comes to."""
    return elect(pieces, scores) if final == "weighted" else best(pieces, scores)
