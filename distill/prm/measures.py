"""Metrics of a process reward model on held-out steps: accuracy, first errors, calibration, ranking.

Pure functions of probabilities and labels. Steps without a label are ignored. A soft label of at least 0.5 counts as
right; in calibration it counts as the probability that it is. There are two kinds of AUC because the pooled one
flatters: a head first learns how hard problems are and how far a response has got, which does not rank responses to the
same problem.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, harmonic_mean
from typing import Any

from distill.evaluation.statistics import clustered_mean

BINS = 10
TOLD = (
    "step_accuracy", "first_error_accuracy", "first_error_f1", "ece", "step_auc", "step_auc_within",
    "answer_auc_within",
)  # fmt: skip
"""The figures of `summary` that cards and reports show."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A response to ``problem`` with the probability and the label of each step. ``correct`` is about the final
    answer."""

    problem: str
    probabilities: Sequence[float]
    labels: Sequence[float | None]
    correct: bool | None = None
    score: float = 0.0
    """The aggregate of the probabilities or its logarithm (`distill.prm.scorer`), by which responses are ranked."""

    @property
    def labelled(self) -> list[tuple[float, float]]:
        both = zip(self.probabilities, self.labels, strict=True)
        return [(p, label) for p, label in both if label is not None]

    @property
    def pairs(self) -> list[tuple[float, bool]]:
        return [(p, label >= 0.5) for p, label in self.labelled]


def summary(rows: Sequence[Scored], threshold: float = 0.5) -> dict[str, Any]:
    """All figures of a reward model; None for those that cannot be computed. In the share of ``right`` steps and in the
    accuracy, to be compared with it, problems count equally."""
    pairs = [pair for row in rows for pair in row.pairs]
    accuracy = clustered_mean(_by_problem(rows, lambda row: [float((p >= threshold) == y) for p, y in row.pairs]))
    right = clustered_mean(_by_problem(rows, lambda row: [float(y) for _, y in row.pairs]))
    bins = reliability([pair for row in rows for pair in row.labelled])
    return {
        "steps": len(pairs),
        "responses": len(rows),
        "right": _rounded(right.value),
        "step_accuracy": _rounded(accuracy.value),
        "ci95": [_rounded(accuracy.low), _rounded(accuracy.high)],
        "first_error_accuracy": _rounded(first_error_accuracy(rows, threshold)),
        "first_error_f1": _rounded(first_error_f1(rows, threshold)),
        "ece": _rounded(expected_calibration_error(bins)),
        "bins": bins,
        "step_auc": _rounded(auc(pairs)),
        "step_auc_within": _rounded(auc_within({key: _steps(part) for key, part in _grouped(rows).items()})),
        "answer_auc": _rounded(auc([(row.score, row.correct) for row in rows if row.correct is not None])),
        "answer_auc_within": _rounded(auc_within({key: _answers(part) for key, part in _grouped(rows).items()})),
    }


def in_words(found: Mapping[str, Any]) -> str:
    """The main figures on one line, such as ``98.2% of a problem's steps classified correctly (...), AUC within a
    problem 0.967``. The report has all of them."""
    if not found["steps"]:
        return "no labelled step to be tested on"
    share = f"{100 * found['step_accuracy']:.1f}% of a problem's steps classified correctly"
    always = f"{100 * max(found['right'], 1 - found['right']):.1f}% by always giving the same answer"
    within = found["step_auc_within"]
    auc = "unknown" if within is None else f"{within:.3f}"
    return f"{share} ({always}; {found['steps']:,} steps), AUC within a problem {auc}"


def auc(pairs: Sequence[tuple[float, bool]]) -> float | None:
    """The probability that a right one scores higher than a wrong one, with ties counting half; None without both."""
    right = sorted(p for p, y in pairs if y)
    wrong = [p for p, y in pairs if not y]
    if not right or not wrong:
        return None
    above = sum(2 * len(right) - bisect_left(right, p) - bisect_right(right, p) for p in wrong)
    return above / (2 * len(right) * len(wrong))


def auc_within(groups: Mapping[str, Sequence[tuple[float, bool]]]) -> float | None:
    """The AUC over pairs within the same problem, with all pairs weighted equally."""
    total, weight = 0.0, 0
    for pairs in groups.values():
        if (value := auc(pairs)) is not None:
            right = sum(y for _, y in pairs)
            total, weight = total + value * right * (len(pairs) - right), weight + right * (len(pairs) - right)
    return total / weight if weight else None


def first_error_accuracy(rows: Sequence[Scored], threshold: float = 0.5) -> float | None:
    """The share of responses whose first error is found: the first step below the threshold is the first one labelled
    wrong, or neither exists. If most responses are right, a model that never finds an error scores high."""
    hits = [hit for part in _first_errors(rows, threshold) for hit in part]
    return fmean(hits) if hits else None


def first_error_f1(rows: Sequence[Scored], threshold: float = 0.5) -> float | None:
    """ProcessBench's F1 (https://arxiv.org/abs/2412.06559): the harmonic mean of `first_error_accuracy` over responses
    with a wrong step and over those without; None unless there are both."""
    shares = [fmean(part) for part in _first_errors(rows, threshold) if part]
    return harmonic_mean(shares) if len(shares) == 2 else None


def _first_errors(rows: Sequence[Scored], threshold: float) -> tuple[list[bool], list[bool]]:
    """Whether the first error was found, for responses with one and for those without."""
    found: tuple[list[bool], list[bool]] = ([], [])
    for pairs in (row.pairs for row in rows if row.pairs):
        predicted = next((k for k, (p, _) in enumerate(pairs) if p < threshold), None)
        actual = next((k for k, (_, y) in enumerate(pairs) if not y), None)
        found[actual is None].append(predicted == actual)
    return found


def reliability(pairs: Sequence[tuple[float, float]], bins: int = BINS) -> list[dict[str, Any]]:
    """Steps by predicted probability, in bins of equal width: their number, mean prediction and share that is right."""
    edges = [n / bins for n in range(bins + 1)]
    found: list[dict[str, Any]] = []
    for low, high in pairwise(edges):
        inside = [(p, y) for p, y in pairs if low <= p < high or (p == high == 1.0)]
        if inside:
            predicted, right = fmean(p for p, _ in inside), fmean(y for _, y in inside)
            found.append(
                {"from": low, "to": high, "steps": len(inside), "said": round(predicted, 4), "right": round(right, 4)}
            )
    return found


def expected_calibration_error(bins: Sequence[Mapping[str, Any]]) -> float | None:
    """ECE: the mean distance between the prediction and the share that is right, over the steps in the bins of
    `reliability`."""
    total = sum(b["steps"] for b in bins)
    return sum(b["steps"] * abs(b["said"] - b["right"]) for b in bins) / total if total else None


def _grouped(rows: Sequence[Scored]) -> dict[str, list[Scored]]:
    groups: dict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        groups[row.problem].append(row)
    return groups


def _by_problem(rows: Sequence[Scored], of: Any) -> dict[str, list[float]]:
    return {key: [value for row in part for value in of(row)] for key, part in _grouped(rows).items()}


def _steps(rows: Sequence[Scored]) -> list[tuple[float, bool]]:
    return [pair for row in rows for pair in row.pairs]


def _answers(rows: Sequence[Scored]) -> list[tuple[float, bool]]:
    return [(row.score, row.correct) for row in rows if row.correct is not None]


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 4)
