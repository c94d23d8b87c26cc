"""Two models on the same problems: by how much they differ, on how many problems, and whether chance explains it.

The problem is the unit: its mean over the samples of each model is compared. What is said of a pair::

    difference, ci95       mean over the problems that both have (`distill.statistics.paired_difference`)
    better, worse, equal   problems that the second model solves more often, less often, as often
    p                      the exact sign test of better against worse; with one sample a problem, McNemar's

Where several pairs are told together each also has ``p_holm``, adjusted for their number. Scores are compared where
their protocol is the same; who checks that is the caller (`distill.cli.compare`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from distill.statistics import holm, paired_difference, rounded, sign_test

Scores = Mapping[str, Sequence[float]]
"""By problem: how right each judged sample is."""


def between(before: Scores, after: Scores) -> dict[str, Any]:
    """``after`` against ``before``."""
    found = paired_difference(before, after)
    means = [(fmean(before[key]), fmean(after[key])) for key in before if before[key] and after.get(key)]
    better, worse = sum(a < b for a, b in means), sum(a > b for a, b in means)
    return {
        "difference": rounded(found.value),
        "ci95": [rounded(found.low), rounded(found.high)],
        "problems": found.problems,
        "better": better,
        "worse": worse,
        "equal": len(means) - better - worse,
        "p": float(f"{sign_test(better, worse):.4g}"),
    }


def every_pair(by_model: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Each model against all that come after it."""
    pairs = [{"from": a, "to": b, **between(by_model[a], by_model[b])} for a, b in combinations(by_model, 2)]
    adjusted = holm([pair["p"] for pair in pairs])
    return [{**pair, "p_holm": float(f"{p:.4g}")} for pair, p in zip(pairs, adjusted, strict=True)]


def pair_of(pairs: Sequence[Mapping[str, Any]], before: str, after: str) -> dict[str, Any]:
    """One of `every_pair`, whichever of the two came first there."""
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
