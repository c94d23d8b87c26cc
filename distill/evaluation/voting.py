"""Estimate, from stored samples, the accuracy of strategies that choose one answer from k samples.

Every subset of k of a problem's n samples is equally likely. The accuracy of a strategy with k samples is therefore its
mean over the subsets, and no new sample is drawn. If the mean has a closed form, it is used (pass@k is in
`distill.evaluation.statistics`); these values are exact for the samples at hand, ties included. The strategies that
choose from samples as they arrive are in `rl.search`; tests compare each estimate with its strategy on every order of
the samples.

A sample votes with the result that its answer marks as such, or with the whole answer if it marks none (`ballot`).
Equal values written differently are different votes unless `ballot` brings them into one spelling, since a vote knows
no reference.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb, fsum
from typing import Any

from distill.randomness import generator
from pipeline.errors import InputError

PROGRAM = re.compile(r"```|^\s*(?:def|class|import|from)\s", re.MULTILINE)
ALL = 20_000
"""If a mean has no closed form, all subsets are enumerated up to this number: for 16 samples, any k."""
DRAWS = 2_000
"""The number of subsets that are drawn if there are more than `ALL`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One judged response. If ``answer`` is None (truncated, empty), it abstains from a vote. ``score`` is that of a
    process reward model or a verifier, if there is one; ``tokens`` is its cost, thinking included."""

    answer: str | None
    correct: float
    tokens: int = 0
    score: float = 0.0


def ballot(answer: str) -> str:
    """The vote of an answer, with white space normalised.

    For prose that marks a result (a box, ``####``, "the answer is ..."), this is the result in a canonical spelling, as
    the maths verifier finds it. Otherwise, and for a program, it is the whole answer.
    """
    from distill.verifiers.extract import MARKED, final_answer
    from distill.verifiers.number import canonical, plain

    span = None if PROGRAM.search(answer) else final_answer(answer)
    return " ".join((plain(canonical(span.text)) if span and span.text and span.rule in MARKED else answer).split())


def majority_at_k(samples: Sequence[Sample], k: int) -> float:
    """maj@k: the mean correctness of the most frequent answer of k samples, ties broken at random
    (self-consistency, Wang et al. 2022, arXiv:2203.11171). If all samples abstain, the vote is wrong.

    An answer with n_w of the n samples occurs j times in a subset in C(n_w, j) ways. It wins if the other k - j samples
    are spread over the other answers so that none has more than j. If t of them also have j, it wins one time in t + 1.
    The ways are counted by multiplying the generating polynomials of the answers.
    """
    _check_k(samples, k)
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
    """The number of subsets of ``k`` in which an answer of ``own`` samples wins; a tie of t + 1 counts 1 / (t + 1)."""
    import numpy as np  # imported here, so that a run with nothing to do does not load it

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
    """The mean correctness of the sample with the highest score of k, ties broken at random. A sample without an answer
    is chosen only if none has one.

    The best of a subset has rank s in C(a, k) - C(b, k) of the C(n, k) subsets, where a samples have a rank of at most
    s and b a lower one.
    """
    _check_k(samples, k)
    ranks: dict[tuple[bool, float], list[float]] = defaultdict(list)
    for sample in samples:
        ranks[sample.answer is not None, sample.score].append(sample.correct)
    total, below = 0.0, 0
    for _, level in sorted(ranks.items()):
        upto = below + len(level)
        total += fsum(level) / len(level) * (comb(upto, k) - comb(below, k))
        below = upto
    return total / comb(len(samples), k)


def weighted_vote_at_k(samples: Sequence[Sample], k: int, seed: int = 0, logs: bool = False) -> float:
    """The mean correctness of the answer with the highest sum of scores, over subsets of k.

    All subsets are used up to `ALL`, otherwise `DRAWS` drawn from ``seed``. Ties are shared. The correctness of an
    answer is that of its sample with the highest score. If all samples abstain, the vote is wrong. With ``logs`` the
    scores are logarithms of the weights to be summed. Each subset is scaled by its own highest, because a weight that
    underflows beside the highest of all samples may still decide among k.
    """
    import numpy as np

    _check_k(samples, k)
    answers = {s.answer: [i for i, other in enumerate(samples) if other.answer == s.answer] for s in samples}
    answers.pop(None, None)
    if not answers:
        return 0.0
    subsets = _subsets(len(samples), k, seed)
    scores = np.array([s.score for s in samples])
    if logs:  # relative to each subset's highest, as in `distill.prm.scorer.weights`; all equal if that is not finite
        top = np.where(subsets > 0, scores, -np.inf).max(1, keepdims=True)
        known = np.isfinite(top)
        scores = np.where(known, np.exp(np.minimum(scores - np.where(known, top, 0.0), 0.0)), 1.0)
    parts = subsets * scores
    weights, rights = [], []
    for own in answers.values():
        given = subsets[:, own]
        weights.append(np.where(given.any(1), parts[:, own].sum(1), -np.inf))
        rights.append(_heaviest(given, [samples[i] for i in own]))
    cast = np.array(weights)  # (answers, subsets)
    winners = np.isclose(cast, cast.max(0), rtol=1e-12, atol=0.0)  # the order of summation may differ
    shared = (np.array(rights) * winners).sum(0) / winners.sum(0)
    return float(np.where(np.isfinite(cast).any(0), shared, 0.0).mean())


def _heaviest(given: Any, own: Sequence[Sample]) -> Any:
    """For each subset, the correctness of an answer's sample with the highest score. ``given`` marks which of its
    samples a subset has."""
    import numpy as np

    if len({s.correct for s in own}) == 1:
        return np.full(len(given), own[0].correct)
    right, left = np.zeros(len(given)), np.ones(len(given), dtype=bool)
    for score in sorted({s.score for s in own}, reverse=True):
        level = [at for at, s in enumerate(own) if s.score == score]
        count = given[:, level].sum(1)
        here = left & (count > 0)
        right[here] = (given[:, level] @ np.array([own[at].correct for at in level]))[here] / count[here]
        left &= ~here
    return right


@lru_cache(16)
def _subsets(count: int, k: int, seed: int) -> Any:
    """Subsets of ``k`` of ``count`` samples, of shape (subsets, samples): 1.0 if the subset has the sample."""
    import numpy as np

    if comb(count, k) <= ALL:
        chosen = np.array(list(combinations(range(count), k)))
    else:
        chosen = np.argsort(generator(seed, "weighted vote", count, k).random((DRAWS, count)), axis=1)[:, :k]
    subsets = np.zeros((len(chosen), count))
    np.put_along_axis(subsets, chosen, 1.0, axis=1)
    return subsets


def _check_k(samples: Sequence[Sample], k: int) -> None:
    if not 1 <= k <= len(samples):
        raise InputError(f"k = {k}: expected at least 1 and at most the {len(samples)} samples of a problem")
