"""What choosing among N stored samples is worth, by whoever scores them: no sample is drawn for it.

Beside the mean of one sample (what no choice gets) and any sample right (a perfect judge's choice) stand the most
frequent answer, and for each scorer the vote weighed by its scores and the sample that it likes best. The maximum and
the vote part ways where a scorer is weak: among many samples the one it likes best is one that deceives it
(over-optimisation, Gao et al. 2022, https://arxiv.org/abs/2210.10760), while in a vote a few such are outvoted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from distill.prm.measures import auc, auc_within
from distill.statistics import Estimate, clustered_mean, paired_difference, pass_at_k
from distill.voting import Sample, best_of_k, majority_at_k, weighted_vote_at_k

By = Mapping[str, Sequence[Sample]]
"""The judged samples of each problem, in one order for all scorers."""


def compared(found: By, scores: Mapping[str, Mapping[str, Sequence[float]]], at: Sequence[int]) -> dict[str, Any]:
    """Every strategy at every number of samples, and of each scorer how it ranks. ``scores`` holds, by scorer and
    problem, one score a sample."""
    scored = {
        name: {key: [replace(s, score=v) for s, v in zip(found[key], by[key], strict=True)] for key in found}
        for name, by in scores.items()
    }
    return {
        "problems": len(found),
        "samples": sum(map(len, found.values())),
        "points": [_point(found, scored, k) for k in at],
        "scorers": {name: _ranking(by) for name, by in scored.items()},
    }


def _point(found: By, scored: Mapping[str, By], k: int) -> dict[str, Any]:
    majority = _each(found, lambda part: majority_at_k(part, k))
    strategies: dict[str, Any] = {
        "one": _told(_each(found, lambda part: fmean(s.correct for s in part))),
        "majority": _told(majority),
        "any": _told(_each(found, lambda part: pass_at_k(len(part), round(sum(s.correct for s in part)), k))),
    }
    for name, by in scored.items():
        for how, choose in (("vote", weighted_vote_at_k), ("best", best_of_k)):
            chosen = _each(by, lambda part, choose=choose: choose(part, k))  # type: ignore[misc]
            against = paired_difference(majority, chosen)
            strategies[f"{how} by {name}"] = {**_told(chosen), "over_majority": _estimate(against)}
    tokens = k * fmean(fmean(s.tokens for s in part) for part in found.values())
    return {"samples": k, "tokens": round(tokens, 1), "strategies": strategies}


def _each(by: By, choose: Callable[[Sequence[Sample]], float]) -> dict[str, list[float]]:
    return {key: [choose(part)] for key, part in by.items()}


def _told(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    estimate = clustered_mean(values)
    return {"accuracy": round(estimate.value, 4), "ci95": [round(estimate.low, 4), round(estimate.high, 4)]}


def _estimate(value: Estimate) -> list[float]:
    return [round(value.value, 4), round(value.low, 4), round(value.high, 4)]


def _ranking(by: By) -> dict[str, float | None]:
    """How well a scorer tells right samples from wrong ones: over all, and within a problem, which is what a choice
    among its samples needs."""
    groups = {key: [(s.score, s.correct >= 0.5) for s in part] for key, part in by.items()}
    pooled, within = auc([pair for part in groups.values() for pair in part]), auc_within(groups)
    return {"auc": pooled and round(pooled, 4), "auc_within": within and round(within, 4)}
