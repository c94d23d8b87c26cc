"""One response: the likeliest, or a sampled one. The baselines that every other strategy has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import ClassVar

from distill.evaluation.voting import Sample
from pipeline.stage import Settings
from rl.search.base import Choice, Draft, Resource, Search, draw


class Greedy(Settings):
    """The likeliest token at every position, whatever the budget."""

    independent: ClassVar[bool] = False  # a greedy response cannot replace a sampled one
    needs: ClassVar[frozenset[Resource]] = frozenset()

    def search(self, samples: int) -> Search:
        (piece,) = yield from draw([Draft(greedy=True)])
        return Choice(piece)


class One(Settings):
    """One sample, whatever the budget."""

    independent: ClassVar[bool] = True
    needs: ClassVar[frozenset[Resource]] = frozenset()

    def takes(self, samples: int) -> int:
        return 1

    def over_subsets(self, samples: Sequence[Sample], k: int) -> float:
        return fmean(sample.correct for sample in samples)

    def search(self, samples: int) -> Search:
        (piece,) = yield from draw([Draft()])
        return Choice(piece)
