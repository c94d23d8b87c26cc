"""The stored samples that strategies of whole responses choose from: judged, scored, evaluated over all subsets.

If a strategy's mean over all subsets can be computed (`rl.search.base.Exact`), a point reports it with the mean usage,
and the strategy is not run on orders of the samples. A sample that cannot be judged is in no subset, but is paid for. A
problem with fewer judged samples than the budget has no result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from distill.evaluation.statistics import pass_at_k, rounded
from distill.evaluation.voting import Sample
from distill.prm.measures import auc, auc_within
from distill.prm.scorer import Aggregate, log_aggregate
from distill.types import Outcome
from rl.search.base import Exact, Piece, whole
from rl.search.curves import Answered, Votes
from rl.search.drive import Usage
from rl.search.stored import StoredWorld

Samples = Mapping[str, Sequence[Sample]]
"""The judged samples by problem key."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The samples of a problem, and those that were judged, with whether they are right."""

    key: str
    number: int
    pieces: Sequence[Piece]
    judged: Sequence[tuple[Piece, bool]]


@dataclass(frozen=True)
class Pool:
    problems: Sequence[Drawn]

    def samples(self) -> Samples:
        return {
            problem.key: [Sample(piece.ballot, float(right), piece.tokens) for piece, right in problem.judged]
            for problem in self.problems
        }

    def scored(self, world: StoredWorld, by: str, how: Aggregate) -> Samples:
        """The samples, with the logarithms of their scores by the scorer ``by``."""
        logs = self._logs(world, by, how)
        return {
            key: [replace(s, score=value) for s, value in zip(part, logs[key], strict=True)]
            for key, part in self.samples().items()
        }

    def ranking(self, world: StoredWorld, by: str) -> dict[str, Any]:
        """How well a scorer, by the product over steps, separates right samples from wrong ones: over all, and within
        a problem, which is what a choice among its samples needs."""
        logs = self._logs(world, by, "product")
        groups = {
            problem.key: [(value, right) for value, (_, right) in zip(logs[problem.key], problem.judged, strict=True)]
            for problem in self.problems
        }
        return ranking(groups)

    def _logs(self, world: StoredWorld, by: str, how: Aggregate) -> dict[str, list[float]]:
        """The logarithms of the scores, by problem."""
        world.by = by
        wanted = [(problem.number, piece) for problem in self.problems for piece, _ in problem.judged]
        found = iter([log_aggregate(steps, how) for steps in world.score(wanted)])
        return {problem.key: [next(found) for _ in problem.judged] for problem in self.problems}

    def votes(self) -> Votes:
        return Votes(self.samples())

    def outcomes(self, strategy: Exact, samples: Samples, budget: int) -> list[Answered]:
        """The mean over all subsets, for each problem. ``samples`` carry the scores that the strategy goes by."""
        k, scored = strategy.takes(budget), "scorer" in strategy.needs
        return [
            Answered(
                problem.key,
                strategy.over_subsets(samples[problem.key], k) if len(problem.judged) >= k else None,
                mean_usage(problem.pieces, k, scored),
            )
            for problem in self.problems
        ]


def drawn(world: StoredWorld, size: int) -> Pool:
    """``size`` samples of each problem, sampled and judged where the store lacks them."""
    wanted = [(number, draft) for number in range(len(world.tasks)) for draft in whole(size)]
    pieces = list(zip([number for number, _ in wanted], world.draw(wanted), strict=True))
    verdicts = world.outcomes(pieces)
    found = []
    for number, (key, _) in enumerate(world.tasks):
        own = range(number * size, (number + 1) * size)
        judged = [(pieces[at][1], verdicts[at] is Outcome.CORRECT) for at in own if _is_judged(verdicts[at])]
        found.append(Drawn(key, number, [pieces[at][1] for at in own], judged))
    return Pool(found)


def _is_judged(verdict: Outcome) -> bool:
    return verdict is not Outcome.UNVERIFIABLE


def mean_usage(pieces: Sequence[Piece], k: int, scored: bool) -> Usage:
    """The cost of k of these, on average over all subsets. A text that several share is scored once: it is among the k
    as often as any of them is."""
    reading = 0.0
    if scored:
        tokens_of: dict[str, list[int]] = {}
        for piece in pieces:
            tokens_of.setdefault(piece.text, []).append(piece.prompt_tokens + piece.tokens)
        reading = sum(fmean(tokens) * pass_at_k(len(pieces), len(tokens), k) for tokens in tokens_of.values())
    prompt, sampled = fmean(p.prompt_tokens for p in pieces), fmean(p.tokens for p in pieces)
    return Usage(k * prompt, k * sampled, reading, k)


def ranking(groups: Mapping[str, Sequence[tuple[float, bool]]]) -> dict[str, Any]:
    """AUC of (score, whether right) by problem: over all, and within a problem."""
    figures = {"auc": auc([pair for part in groups.values() for pair in part]), "auc_within": auc_within(groups)}
    return {name: None if value is None else rounded(value) for name, value in figures.items()}
