"""The tables beside the plots, for readers who cannot see those or want the figures. Rows are lists of short texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from distill.cli.display import duration
from distill.evaluation import difficulty
from distill.report.data import Report
from distill.report.words import chance, interval, percent, points, visible

Rows = list[list[str]]


def accuracy(subjects: Sequence[Mapping[str, Any]]) -> Rows:
    return [
        [
            visible(s["label"]),
            percent(s["pass_at_1"]),
            interval(s["ci95"]),
            percent(s["greedy"]) if "greedy" in s else "",
            f"{s['tokens_per_answer']:.1f}",
            f"{s['tokens_per_correct']:,.1f}" if s["tokens_per_correct"] else "none right",
            percent(s["stopped"]),
            percent(s["truncated"]),
            f"{s['unverifiable']:,}",
            contaminated(s),
            duration(s["seconds"]) if s["seconds"] else "",
        ]
        for s in subjects
    ]


def contaminated(subject: Mapping[str, Any]) -> str:
    """The share of the problems that the model has seen in training, or "unknown"."""
    found = subject.get("contamination")
    return percent(found["share"]) if found else "unknown"


def contamination(subjects: Sequence[Mapping[str, Any]]) -> Rows:
    """One row per model whose training is known: what it was trained on, and its scores on clean and seen problems."""
    return [
        [
            visible(s["label"]), f"{found['trained_on']:,}", f"{found['problems']:,}", _part(found["clean"]),
            _part(found["contaminated"]),
        ]
        for s in subjects
        if (found := s.get("contamination"))
    ]  # fmt: skip


def _part(score: Mapping[str, Any]) -> str:
    return f"{_share(score)} of {score['problems']:,}" if score["problems"] else ""


def differences(pairs: Sequence[Mapping[str, Any]]) -> Rows:
    return [
        [
            visible(f"{pair['from']} → {pair['to']}"), points(pair["difference"]), *map(points, pair["ci95"]),
            f"{pair['better']:,}", f"{pair['worse']:,}", f"{pair['equal']:,}", chance(pair["p"]),
            chance(pair["p_holm"]),
        ]
        for pair in pairs
    ]  # fmt: skip


def funnel(found: Mapping[str, Any] | None) -> Rows:
    if not found:
        return []
    rejected = [[visible(r["reason"]), f"{r['traces']:,}"] for r in found["rejected"]]
    return [["generated", f"{found['generated']:,}"], *rejected, ["kept", f"{found['kept']:,}"]]


def bias(funnel: Mapping[str, Any] | None) -> Rows:
    """One row per bin of difficulty: problems, shares of generated and of kept traces, mean tokens of both."""
    found = (funnel or {}).get("bias")
    if not found:
        return []
    parts = zip(found["bins"], difficulty.shares(found, "generated"), difficulty.shares(found, "kept"), strict=True)
    return [
        [
            visible(row["bin"]), f"{row['problems']:,}", percent(generated), percent(kept), f"{row['tokens']:,.1f}",
            "" if row["kept_tokens"] is None else f"{row['kept_tokens']:,.1f}",
        ]
        for row, generated, kept in parts
    ]  # fmt: skip


def families(panels: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Rows:
    """One row per source and level, one column per model."""
    return [
        [visible(f"{panel['source']} {level}"), *(_share(panel["scores"][label].get(level)) for label in labels)]
        for panel in panels
        for level in panel["levels"]
    ]


def _share(score: Mapping[str, Any] | None) -> str:
    return f"{percent(score['pass_at_1'])} ({interval(score['ci95'])})" if score else ""


def by_samples(subjects: Sequence[Mapping[str, Any]]) -> Rows:
    """One row per model and number of samples."""
    return [
        [
            visible(s["label"]), f"{at['samples']}", f"{at['problems']:,}", f"{at['tokens']:,.0f}",
            _bought(at["majority"]), _bought(at["pass"]),
        ]
        for s in subjects
        for at in s["by_samples"]
    ]  # fmt: skip


def _bought(score: Mapping[str, Any]) -> str:
    return f"{percent(score['accuracy'])} ({interval(score['ci95'])})"


def by_length(subjects: Sequence[Mapping[str, Any]]) -> Rows:
    """One row per model with enough samples per problem."""
    return [
        [visible(s["label"]), *map(_share, s["by_length"].values()), _over(s["by_length"]["longer"])]
        for s in subjects
        if s["by_length"]
    ]


def _over(longer: Mapping[str, Any]) -> str:
    if "over_shorter" not in longer:
        return "n/a"
    low, high = longer["over_shorter_ci95"]
    return f"{points(longer['over_shorter'])} ({points(low)} to {points(high)})"


def lengths(report: Report, labels: Sequence[str]) -> Rows:
    """One row per bin, with ``right / all`` for each model."""
    bins = list(pairwise(report["lengths"]["edges"]))
    models = [report["lengths"]["models"][label] for label in labels]
    return [
        [f"{low} to {high - 1}", *(f"{m['right'][i]:,} / {m['right'][i] + m['other'][i]:,}" for m in models)]
        for i, (low, high) in enumerate(bins)
    ]
