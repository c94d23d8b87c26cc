"""Estimators over verdicts: pass@k, intervals clustered by problem, paired tests. Pure functions, no numpy.

Samples of one problem are not independent, so every interval here treats the problem as the unit. Problems are few and
models good, where the normal interval covers too seldom (85% of the time at 97% of 150 problems, by simulation): a mean
has Wilson's interval for as many problems as its spread is worth, a difference Student's.
An unverifiable sample counts neither as right nor as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pipeline.errors import InputError

Z95 = 1.959963984540054
FEW = (math.inf, 12.706204736174698, 4.302652729749462)
"""Student's quantile with no, one, and two degrees of freedom."""
ALIKE = 1e-18
"""Variances below it are those of sums in another order."""


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
    """Mean over problems of each problem's mean, values in [0, 1], with its 95% interval: Wilson's, for the number of
    right-or-wrong trials that would spread as the problem means do (Korn and Graubard 1998; Franco et al. 2019,
    https://doi.org/10.1093/jssam/smy019), with Student's quantile. Where all problems agree that is Wilson's for their
    number."""
    means = [fmean(values) for values in by_problem.values() if values]
    count = len(means)
    if count == 0:
        return Estimate(math.nan, 0.0, 1.0, 0)
    value = fmean(means)
    variance = stdev(means) ** 2 / count if count > 1 else 0.0
    trials = value * (1 - value) / variance if variance > ALIKE else float(count)
    return Estimate(value, *wilson(value, trials, student(count - 1) if count > 1 else Z95), count)


def student(freedom: int) -> float:
    """The quantile of Student's t for a 95% interval; by the expansion of Abramowitz and Stegun, 26.7.5, from three
    degrees of freedom on, where it errs by less than 0.004."""
    if freedom < len(FEW):
        return FEW[freedom]
    z2 = Z95 * Z95
    terms = (
        (z2 + 1) / 4,
        ((5 * z2 + 16) * z2 + 3) / 96,
        (((3 * z2 + 19) * z2 + 17) * z2 - 15) / 384,
        ((((79 * z2 + 776) * z2 + 1482) * z2 - 1920) * z2 - 945) / 92160,
    )
    return Z95 * (1 + sum(term / freedom**n for n, term in enumerate(terms, start=1)))


def wilson(share: float, trials: float, quantile: float = Z95) -> tuple[float, float]:
    """Wilson's 95% score interval for ``share`` of so many trials."""
    z2 = quantile * quantile
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = quantile / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired_difference(a: Mapping[str, Sequence[float]], b: Mapping[str, Sequence[float]]) -> Estimate:
    """Mean of ``b - a`` over the problems both have, with its 95% interval (Student's): tighter than comparing two
    intervals, since each problem is its own control. Where all problems agree, Wilson's bound on the share
    of those that would not."""
    shared = [key for key in a if a[key] and b.get(key)]
    differences = [fmean(b[key]) - fmean(a[key]) for key in shared]
    if not differences:
        return Estimate(math.nan, -1.0, 1.0, 0)
    value = fmean(differences)
    if len(differences) == 1:  # one problem says nothing of others
        return Estimate(value, -1.0, 1.0, 1)
    variance, count = stdev(differences) ** 2 / len(differences), len(differences)
    if variance <= ALIKE:  # up to so large a share of problems may differ from those seen, by as much as can be
        others = wilson(0.0, count)[1]
        return Estimate(value, value - others * (value + 1), value + others * (1 - value), count)
    half = student(count - 1) * math.sqrt(variance)
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
