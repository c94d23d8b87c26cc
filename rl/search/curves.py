"""The results of the searches: accuracy against samples and against tokens, and against a majority at equal tokens.

A problem is the unit of every interval. For a number of tokens between those of k and k + 1 samples, the majority vote
takes k + 1 samples with the probability that makes the mean tokens equal. Its accuracy is known exactly, problem by
problem, from the stored samples (`distill.evaluation.voting`), so a strategy is compared with it on the same problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from distill.evaluation.statistics import Estimate, clustered_mean, paired_difference, rounded
from distill.evaluation.voting import Sample, majority_at_k
from rl.search.drive import Usage

Scores = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Answered:
    """One search, or the mean of several: the problem, whether the answer is right (None: unverifiable), the cost."""

    problem: str
    correct: float | None
    usage: Usage


def point(budget: int, outcomes: Sequence[Answered], votes: Votes, seen: Set[str] = frozenset()) -> dict[str, Any]:
    """All figures of one strategy with one budget. If some problems have been ``seen`` in training, they include its
    accuracy on the others."""
    scores = by_problem(outcomes)
    clean = [fmean(values) for key, values in scores.items() if key not in seen]
    sampled = fmean(outcome.usage.sampled for outcome in outcomes)
    tokens = fmean(outcome.usage.tokens for outcome in outcomes)
    return {
        "samples": budget,
        **_estimate(clustered_mean(scores), "accuracy"),
        **({"clean_accuracy": rounded(fmean(clean)) if clean else None} if seen else {}),
        "calls": round(fmean(outcome.usage.calls for outcome in outcomes), 3),
        "prompt_tokens": round(fmean(outcome.usage.prompt for outcome in outcomes), 2),
        "sampled_tokens": round(sampled, 2),
        "scored_tokens": round(tokens - sampled, 2),
        "tokens": round(tokens, 2),
        "tokens_saved": rounded(1 - tokens / (budget * votes.tokens)) if votes.tokens else None,
        "against_majority": {
            "at_equal_samples": votes.compared(scores, budget),
            "at_equal_tokens": votes.compared(scores, votes.samples_for(tokens)),
        },
    }


@dataclass(frozen=True, slots=True)
class Curve:
    """A strategy's accuracy on each problem by its mean tokens, cheapest first. For a number of tokens between those of
    two budgets, it is the mean of both, weighted such that the mean tokens are equal."""

    points: Sequence[tuple[float, Mapping[str, float]]]

    def at(self, tokens: float) -> tuple[float, dict[str, list[float]]]:
        """(the tokens used, accuracy by problem). Beyond its ends, that is the cheapest or the most expensive point."""
        costs = [cost for cost, _ in self.points]
        had = min(max(tokens, costs[0]), costs[-1])
        above = next(n for n, cost in enumerate(costs) if cost >= had)
        (low, before), (high, after) = self.points[max(above - 1, 0)], self.points[above]
        share = (had - low) / (high - low) if high > low else 1.0
        return had, {key: [(1 - share) * before.get(key, now) + share * now] for key, now in after.items()}


def curve(points: Sequence[tuple[dict[str, Any], Scores]]) -> Curve:
    """The curve through (figures of `point`, accuracies by problem)."""
    found = [(figures["tokens"], {key: fmean(values) for key, values in scores.items()}) for figures, scores in points]
    return Curve(sorted(found, key=lambda each: each[0]))


def rival(scores: Scores, tokens: float, other: Curve) -> dict[str, Any]:
    """A strategy, with ``tokens``, minus another at equal tokens, on the same problems. The ``tokens`` of the result
    are those that the other used."""
    had, theirs = other.at(tokens)
    return {"tokens": round(had, 2), **_estimate(paired_difference(theirs, scores), "difference")}


def by_problem(outcomes: Sequence[Answered]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for outcome in outcomes:
        if outcome.correct is not None:
            found.setdefault(outcome.problem, []).append(float(outcome.correct))
    return found


class Votes:
    """Majority votes over the stored samples of each problem, for any number of samples, also fractions."""

    def __init__(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        self._samples = {key: part for key, part in samples.items() if part}
        self.most = max(map(len, self._samples.values()), default=0)
        self.tokens = fmean(fmean(s.tokens for s in part) for part in self._samples.values()) if self._samples else 0.0
        """The mean tokens of one sample."""
        self._known: dict[int, dict[str, float]] = {}

    def samples_for(self, tokens: float) -> float:
        """The number of samples that this many tokens buy."""
        return tokens / self.tokens if self.tokens else 0.0

    def at(self, samples: float) -> dict[str, list[float]]:
        """The majority's accuracy on each problem; with all samples if ``samples`` is more than there are."""
        wished = min(max(samples, 1.0), float(self.most))
        low = int(wished)
        share = wished - low
        after = self._of(low + 1) if share else self._of(low)
        before = self._of(low)
        return {key: [(1 - share) * before[key] + share * value] for key, value in after.items()}

    def _of(self, k: int) -> dict[str, float]:
        """The majority's accuracy over ``k`` samples, on the problems that have as many judged ones."""
        if k not in self._known:
            enough = {key: part for key, part in self._samples.items() if len(part) >= k}
            self._known[k] = {key: majority_at_k(part, k) for key, part in enough.items()}
        return self._known[k]

    def compared(self, scores: Scores, samples: float) -> dict[str, Any] | None:
        """A strategy minus the majority over this many samples, on the same problems. The ``samples`` of the result are
        fewer than the ``wished`` if no more are stored; then the strategy used more tokens."""
        if not self.most:
            return None
        had = min(max(samples, 1.0), float(self.most))
        return {
            "samples": round(had, 2),
            "wished": round(samples, 2),
            **_estimate(paired_difference(self.at(had), scores), "difference"),
        }


def _estimate(found: Estimate, name: str) -> dict[str, Any]:
    return {name: rounded(found.value), "ci95": [rounded(found.low), rounded(found.high)]}
