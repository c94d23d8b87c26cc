"""Rank whole responses: best-of-N by a step scorer or a verifier, and a vote weighted by a step scorer."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import ClassVar, Literal

from distill.evaluation.statistics import pass_at_k
from distill.evaluation.voting import Sample, best_of_k, weighted_vote_at_k
from distill.prm.scorer import weights
from rl.search.base import VERIFIER, ByScore, Choice, Piece, Resource, Search, draw, judge, score, whole
from rl.search.vote import elect


class BestOf(ByScore):
    """Best-of-N: the response that scores highest, or (`by: verifier`) the first that the verifier accepts.

    By step scores: Lightman et al. 2023, https://arxiv.org/abs/2305.20050. By verifier: what a perfect judge of answers
    could reach with the samples. With a weak scorer, accuracy falls as N grows, because the maximum goes to whatever
    deceives it (over-optimisation, Gao et al. 2022, https://arxiv.org/abs/2210.10760); in a vote a few such responses
    are outvoted.
    """

    independent: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[Resource]:
        return frozenset(("verifier",) if self.by == VERIFIER else ("scorer",))

    def takes(self, samples: int) -> int:
        return samples

    def over_subsets(self, samples: Sequence[Sample], k: int) -> float:
        if self.by == VERIFIER:
            return pass_at_k(len(samples), round(sum(s.correct for s in samples)), k)
        return best_of_k(samples, k)

    def search(self, samples: int) -> Search:
        pieces = yield from draw(whole(samples))
        if self.by == VERIFIER:
            right = yield from judge(pieces)
            return Choice(next((piece for piece, is_right in zip(pieces, right, strict=True) if is_right), pieces[0]))
        return best(pieces, (yield from score(pieces, self.aggregate)))


class WeightedVote(ByScore):
    """A vote in which each answer has the sum of its responses' scores.

    Also known as weighted best-of-N (Li et al. 2022, https://arxiv.org/abs/2206.02336; Beeching et al. 2024).
    """

    independent: ClassVar[bool] = True
    needs: ClassVar[frozenset[Resource]] = frozenset(("scorer",))

    def takes(self, samples: int) -> int:
        return samples

    def over_subsets(self, samples: Sequence[Sample], k: int) -> float:
        return weighted_vote_at_k(samples, k, logs=True)

    def search(self, samples: int) -> Search:
        pieces = yield from draw(whole(samples))
        return elect(pieces, weights((yield from score(pieces, self.aggregate))))


def best(pieces: Sequence[Piece], logs: Sequence[float]) -> Choice:
    """The highest score among the pieces with an answer (all, if none has one); the first of equals. ``logs`` are the
    logarithms of the scores."""
    able = [at for at, piece in enumerate(pieces) if piece.ballot is not None] or range(len(pieces))
    at = max(able, key=lambda index: logs[index])
    return Choice(pieces[at], score=exp(logs[at]))


def conclude(pieces: Sequence[Piece], logs: Sequence[float], final: Literal["weighted", "best"]) -> Choice:
    """The choice of a search step by step among its finished responses."""
    return elect(pieces, weights(logs)) if final == "weighted" else best(pieces, logs)
