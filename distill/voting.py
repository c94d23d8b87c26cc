"""What a number of samples would have bought: strategies that pick one answer, estimated from stored samples.

Of n samples of a problem every subset of k is as likely as any other, so the accuracy that a strategy has
with k samples is its mean over subsets; no new sample is drawn. Where the mean has a closed form it is
used (pass@k is in `distill.statistics`): the values are exact for the samples at hand, ties included.

Samples vote with their answers as they stand, white space aside: equal values in different words are
different votes, as they are to whoever has no reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, fsum

from distill.randomness import generator
from pipeline.errors import InputError

DRAWS = 200
"""Subsets that stand for all of them where the mean over subsets has no closed form."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged response. ``answer`` None abstains from a vote (truncated, empty); ``score`` is a process
    reward model's or a verifier's, where there is one; ``tokens`` is what it cost, thinking included."""

    answer: str | None
    correct: float
    tokens: int = 0
    score: float = 0.0


def ballot(answer: str) -> str:
    """An answer as it is counted."""
    return " ".join(answer.split())


def majority_at_k(samples: Sequence[Sample], k: int) -> float:
    """maj@k: the mean correctness of the most frequent answer of k samples, ties broken by lot
    (self-consistency, Wang et al. 2022, arXiv:2203.11171). A vote without a ballot is wrong.

    An answer with n_w of the n samples is given by j of a subset in C(n_w, j) ways. It wins with the rest of the
    subset, k - j samples, spread over the other answers so that none has more than j; with t of them level at
    j it wins one time in t + 1. The ways are counted by multiplying the answers' generating polynomials.
    """
    _enough(samples, k)
    sizes = Counter(s.answer for s in samples if s.answer is not None)
    abstained = len(samples) - sizes.total()
    total = 0.0
    for answer in sizes:
        right = fsum(s.correct for s in samples if s.answer == answer) / sizes[answer]
        if right:
            others = [size for other, size in sizes.items() if other != answer]
            total += right * _wins(sizes[answer], others, abstained, k)
    return total / comb(len(samples), k)


def _wins(own: int, others: Sequence[int], abstained: int, k: int) -> float:
    """In how many subsets of ``k`` an answer of ``own`` samples wins, a tie of t + 1 counting 1 / (t + 1)."""
    import numpy as np  # not above: a run that has nothing to do would load it too

    total = 0.0
    for j in range(1, min(own, k) + 1):
        rest = k - j
        ways = np.zeros((rest + 1, rest // j + 1))  # (samples of others taken, answers level with this one)
        ways[: min(abstained, rest) + 1, 0] = [comb(abstained, m) for m in range(min(abstained, rest) + 1)]
        for size in others:
            fresh = ways.copy()
            for m in range(1, min(size, j - 1, rest) + 1):
                fresh[m:] += comb(size, m) * ways[: rest + 1 - m]
            if size >= j <= rest:
                fresh[j:, 1:] += comb(size, j) * ways[: rest + 1 - j, :-1]
            ways = fresh
        total += comb(own, j) * float(sum(count / (level + 1) for level, count in enumerate(ways[rest])))
    return total


def best_of_k(samples: Sequence[Sample], k: int) -> float:
    """The mean correctness of the sample with the highest score of k, ties broken by lot.

    The best of a subset has score s in C(a, k) - C(b, k) of the C(n, k) subsets, where a samples have
    at most s and b less.
    """
    _enough(samples, k)
    total, below = 0.0, 0
    for score in sorted({s.score for s in samples}):
        level = [s.correct for s in samples if s.score == score]
        upto = below + len(level)
        total += fsum(level) / len(level) * (comb(upto, k) - comb(below, k))
        below = upto
    return total / comb(len(samples), k)


def weighted_vote_at_k(samples: Sequence[Sample], k: int, seed: int = 0) -> float:
    """The mean correctness of the answer whose samples' scores add up highest, over subsets of k (all
    of them where there are no more than `DRAWS`, else as many drawn from ``seed``); ties are shared. A vote without a
    ballot is wrong."""
    import numpy as np

    _enough(samples, k)
    ballots = list(dict.fromkeys(s.answer for s in samples if s.answer is not None))
    if not ballots:
        return 0.0
    given = np.array([[s.answer == answer for answer in ballots] for s in samples], dtype=float)
    scores, right = (np.array([getattr(s, name) for s in samples]) for name in ("score", "correct"))
    if comb(len(samples), k) <= DRAWS:
        chosen = np.array(list(combinations(range(len(samples)), k)))
    else:
        draws = generator(seed, "weighted vote", len(samples), k)
        chosen = np.argsort(draws.random((DRAWS, len(samples))), axis=1)[:, :k]
    votes = given[chosen]  # (draws, k, answers)
    counts = votes.sum(1)
    weights = np.where(counts > 0, np.einsum("dk,dka->da", scores[chosen], votes), -np.inf)
    winners = np.isclose(weights, weights.max(1, keepdims=True), rtol=1e-12, atol=0.0)  # sums in another order
    rights = np.einsum("dk,dka->da", right[chosen], votes) / np.maximum(counts, 1)
    shared = (rights * winners).sum(1) / winners.sum(1)
    return float(np.where(counts.sum(1) > 0, shared, 0.0).mean())


def _enough(samples: Sequence[Sample], k: int) -> None:
    if not 1 <= k <= len(samples):
        raise InputError(f"a choice of {k} samples needs at least {k} (and one) a problem; there are {len(samples)}")
