"""Votes: the answers of several responses, counted or weighted.

The answer with the largest sum wins; on a tie, the one that was given first. (Samples are exchangeable, so that is as
good as a random choice.) The chosen trace is the winner's heaviest one, the first on a tie. A response without
an answer casts no vote; if none has an answer, the first response is chosen, and it is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from distill.evaluation.voting import Sample, majority_at_k
from pipeline.stage import Settings
from rl.search.base import Choice, Piece, Resource, Search, draw, whole


def elect(pieces: Sequence[Piece], weights: Sequence[float] | None = None) -> Choice:
    """The winner of a vote. Without ``weights``, every vote weighs 1."""
    cast = [1.0] * len(pieces) if weights is None else weights
    totals: dict[str, float] = {}
    heaviest: dict[str, int] = {}
    for at, (piece, weight) in enumerate(zip(pieces, cast, strict=True)):
        if piece.ballot is not None:
            totals[piece.ballot] = totals.get(piece.ballot, 0.0) + weight
            if piece.ballot not in heaviest or weight > cast[heaviest[piece.ballot]]:
                heaviest[piece.ballot] = at
    if not totals:
        return Choice(pieces[0])
    ranked = sorted(totals.items(), key=lambda item: -item[1])  # stable: the first given wins a tie
    return Choice(pieces[heaviest[ranked[0][0]]], tuple(ranked))


class Majority(Settings):
    """Self-consistency: the most frequent answer.

    Wang et al. 2022, https://arxiv.org/abs/2203.11171.
    """

    independent: ClassVar[bool] = True
    needs: ClassVar[frozenset[Resource]] = frozenset()

    def takes(self, samples: int) -> int:
        return samples

    def over_subsets(self, samples: Sequence[Sample], k: int) -> float:
        return majority_at_k(samples, k)

    def search(self, samples: int) -> Search:
        return elect((yield from draw(whole(samples))))
