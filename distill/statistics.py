"""Estimators over verdicts: pass@k, intervals clustered by problem, paired tests. Pure functions, no numpy.

Samples of one problem are not independent, so every interval here treats the problem as the unit.
An unverifiable sample counts neither as right nor as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pipeline.errors import InputError

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over ``problems`` problems with its 95% interval."""

    value: float
    low: float
    high: float
    problems: int


def rounded(value: float) -> float | None:
    """As it is written down: four digits, nothing for what could not be estimated."""
    return None if value != value else round(value, 4)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of ``k`` samples is correct, from
    ``correct`` of ``samples`` (Chen et al. 2021, arXiv:2107.03374, eq. 1). Refused where samples < k."""
    if samples < k:
        raise InputError(f"pass@{k} needs at least {k} samples a problem; there are {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def clustered_mean(by_problem: Mapping[str, Sequence[float]]) -> Estimate:
    """Mean over problems of each problem's mean, with the normal 95% interval of the problem means,
    cut to [0, 1]; Wilson's interval where all problems agree and the normal one would have no width."""
    means = [fmean(values) for values in by_problem.values() if values]
    count = len(means)
    if count == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    value = fmean(means)
    spread = stdev(means) if count > 1 else 0.0
    if spread == 0.0:
        return Estimate(value, *wilson(value, count), count)
    half = Z95 * spread / math.sqrt(count)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), count)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% score interval for ``share`` of ``count`` trials."""
    z2 = Z95 * Z95
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_difference(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> Estimate:
    """Mean of ``b - a`` over the problems both have, with its 95% interval: tighter than comparing two
    intervals, since each problem is its own control. Where all problems agree, Wilson's bound on the share
    of those that would not."""
    shared = [key for key in a if a[key] and b.get(key)]
    differences = [fmean(b[key]) - fmean(a[key]) for key in shared]
    if not differences:
        return Estimate(math.nan, -1.0, 1.0, 0)
    value = fmean(differences)
    if len(differences) == 1:  # one problem says nothing of others
        return Estimate(value, -1.0, 1.0, 1)
    spread, count = stdev(differences), len(differences)
    if spread == 0.0:  # up to so large a share of problems may differ from those seen, by as much as can be
        others = wilson(0.0, count)[1]
        return Estimate(value, value - others * (value + 1), value + others * (1 - value), count)
    half = Z95 * spread / math.sqrt(count)
    return Estimate(value, max(-1.0, value - half), min(1.0, value + half), count)


def sign_test(better: int, worse: int) -> float:
    """Two-sided p of so many problems for one model and so many for the other, were either as likely: the exact
    binomial. With one sample a problem it is McNemar's exact test. Ties say nothing of who is better and are left
    out; 1 where there is nothing else."""
    count = better + worse
    tail = sum(math.comb(count, i) for i in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**count)


def holm(values: Sequence[float]) -> list[float]:
    """The p values of several tests, adjusted so that 0.05 bounds the chance that any of them errs (Holm 1979)."""
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted
