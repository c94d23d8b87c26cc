"""The report's section on process reward models and their tests.

It shows the figures of prm stages (``reward_models`` in ``report.json``). `distill.report.searches` shows what a choice
by their scores gains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from distill.prm.measures import TOLD
from distill.report import svg
from distill.report.words import visible

Rows = list[list[str]]
TESTS = {"heldout": "held out", "test": "test"}
HEAD = [
    "reward model", "labelled steps", "steps right", "first errors found", "F1 of first errors", "calibration error",
    "AUC of steps", "within a problem", "of answers within",
]  # fmt: skip


def model_rows(models: Mapping[str, Any]) -> Rows:
    """One row per reward model and test."""
    return [
        [visible(f"{name}, {title}"), f"{figures[part]['steps']:,}", *map(_figure, map(figures[part].get, TOLD))]
        for name, figures in models.items()
        for part, title in TESTS.items()
        if part in figures
    ]


def reliability(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One panel per reward model: by bin of predicted probability, the mean prediction and the share that is right."""
    panels = []
    for index, (name, figures) in enumerate(models.items()):
        part = "test" if "test" in figures else "heldout"
        bins = figures[part]["bins"]
        predicted, right = (
            svg.Line(label, [(float(i), b[key]) for i, b in enumerate(bins)], colour, [(b[key], b[key]) for b in bins])
            for label, key, colour in (("predicted", "said", "var(--ink-2)"), ("right", "right", "var(--right)"))
        )
        title, names = visible(name), [f"{b['from']:.1f}" for b in bins]
        about = f"error {_figure(figures[part]['ece'])} over {figures[part]['steps']:,} steps"
        drawn = svg.slopes(f"reliability-{index}", title, about, names, [predicted, right])
        panels.append({"title": title, "aside": about, "svg": Markup(drawn)})
    return panels


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
