"""Compare two models on the same problems: the difference, the number of problems, and whether chance explains it.

The unit is the problem: the means over each model's samples are compared. The figures of a pair::

    difference, ci95       mean over the problems that both have (`distill.evaluation.statistics.paired_difference`)
    better, worse, equal   problems that the second model solves more often, less often, equally often
    p                      exact sign test of better against worse; with one sample per problem, McNemar's test

If several pairs are reported together, each also has ``p_holm``, adjusted for their number. Only scores of the same
protocol can be compared; the caller (`distill.cli.compare`) checks that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from distill.evaluation.statistics import clustered_mean, holm, paired_difference, rounded, sign_test

Scores = Mapping[str, Sequence[float]]
"""By problem, the score of each judged sample."""


def between(before: Scores, after: Scores) -> dict[str, Any]:
    """The figures of ``after`` against ``before``."""
    found = paired_difference(before, after)
    both = [(fmean(before[key]), fmean(after[key])) for key in before if before[key] and after.get(key)]
    better, worse = sum(a < b for a, b in both), sum(a > b for a, b in both)
    return {
        "difference": rounded(found.value),
        "ci95": [rounded(found.low), rounded(found.high)],
        "problems": found.problems,
        "better": better,
        "worse": worse,
        "equal": len(both) - better - worse,
        "p": float(f"{sign_test(better, worse):.4g}"),
    }


def means(before: Scores, after: Scores) -> tuple[float | None, float | None]:
    """The mean scores of both on the problems that both have, so that they differ by the difference of `between`."""
    shared = [key for key in before if before[key] and after.get(key)]
    first, second = (clustered_mean({key: scores[key] for key in shared}).value for scores in (before, after))
    return rounded(first), rounded(second)


def every_pair(by_model: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Compare each model with all models after it."""
    pairs = [{"from": a, "to": b, **between(by_model[a], by_model[b])} for a, b in combinations(by_model, 2)]
    adjusted = holm([pair["p"] for pair in pairs])
    return [{**pair, "p_holm": float(f"{p:.4g}")} for pair, p in zip(pairs, adjusted, strict=True)]


def pair_of(pairs: Sequence[Mapping[str, Any]], before: str, after: str) -> dict[str, Any]:
    """Look up a pair in the result of `every_pair`, in either order."""
    for pair in pairs:
        if (pair["from"], pair["to"]) == (before, after):
            return dict(pair)
        if (pair["to"], pair["from"]) == (before, after):
            return reversed_(pair)
    raise KeyError((before, after))


def reversed_(pair: Mapping[str, Any]) -> dict[str, Any]:
    low, high = pair["ci95"]
    turned = {"from": pair["to"], "to": pair["from"], "better": pair["worse"], "worse": pair["better"]}
    return {**pair, **turned, "difference": _minus(pair["difference"]), "ci95": [_minus(high), _minus(low)]}


def _minus(value: float | None) -> float | None:
    return None if value is None else 0.0 - value
