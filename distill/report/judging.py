"""The section on process reward models: how they were tested, and what choosing by them buys.

Takes the figures of prm and choose stages as they are (``reward_models`` and ``choices`` in ``report.json``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from distill.report import svg
from distill.report.words import percent, points, visible

Rows = list[list[str]]
TESTS = {"heldout": "held out", "test": "test"}
MEASURES = ("step_accuracy", "first_error_accuracy", "ece", "step_auc", "step_auc_within", "answer_auc_within")
HEAD = [
    "reward model", "labelled steps", "steps right", "first errors found", "calibration error", "AUC of steps",
    "within a problem", "of answers within",
]  # fmt: skip
CHOICE_HEAD = ["choice", "samples", "accuracy", "95% low", "95% high", "over majority", "low", "high"]


def model_rows(models: Mapping[str, Any]) -> Rows:
    """One row a reward model and test."""
    return [
        [visible(f"{name}, {told}"), f"{figures[part]['steps']:,}", *map(_figure, map(figures[part].get, MEASURES))]
        for name, figures in models.items()
        for part, told in TESTS.items()
        if part in figures
    ]


def reliability(models: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A panel a reward model: of the steps that it said to be right with so much certainty, the share that is."""
    panels = []
    for index, (name, figures) in enumerate(models.items()):
        part = "test" if "test" in figures else "heldout"
        bins = figures[part]["bins"]
        said, right = (
            svg.Line(label, [(float(i), b[key]) for i, b in enumerate(bins)], colour, [(b[key], b[key]) for b in bins])
            for label, key, colour in (("said", "said", "var(--ink-2)"), ("right", "right", "var(--right)"))
        )
        title, names = visible(f"{name}: said (grey) and right (green)"), [f"{b['from']:.1f}" for b in bins]
        about = f"calibration error {_figure(figures[part]['ece'])} over {figures[part]['steps']:,} steps"
        drawn = svg.slopes(f"reliability-{index}", title, about, names, [said, right])
        panels.append({"title": title, "aside": about, "svg": Markup(drawn)})
    return panels


def choice_rows(choices: Mapping[str, Any]) -> Rows:
    """One row a way to choose and number of samples."""
    found: Rows = []
    for figures in choices.values():
        for point in figures["points"]:
            for name, at in point["strategies"].items():
                over = map(points, at["over_majority"]) if "over_majority" in at else [""] * 3
                shares = (at["accuracy"], *at["ci95"])
                found.append([visible(name), str(point["samples"]), *map(percent, shares), *over])
    return found


def choice_panels(choices: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A panel a scorer: the majority, its vote and its best against the number of samples."""
    panels = []
    for stage, figures in choices.items():
        counts = [str(point["samples"]) for point in figures["points"]]
        for index, (scorer, rank) in enumerate(figures["scorers"].items()):
            lines = [
                _line(figures["points"], name, colour)
                for name, colour in (
                    ("majority", "var(--ink-2)"), (f"vote by {scorer}", "var(--right)"),
                    (f"best by {scorer}", "var(--wrong)"),
                )
            ]  # fmt: skip
            title = visible(f"{stage}, {scorer}: majority (grey), weighed vote (green), best (red)")
            aside = f"AUC {_figure(rank['auc'])}, within a problem {_figure(rank['auc_within'])}"
            about = "; ".join(f"{line.label}: {percent(line.points[-1][1])}" for line in lines)
            drawn = svg.slopes(f"choice-{stage}-{index}", title, visible(about), counts, lines)
            panels.append({"title": title, "aside": aside, "svg": Markup(drawn)})
    return panels


def _line(found: Sequence[Mapping[str, Any]], name: str, colour: str) -> svg.Line:
    at = [point["strategies"][name] for point in found]
    shares = [(float(i), one["accuracy"]) for i, one in enumerate(at)]
    return svg.Line(visible(name), shares, colour, [tuple(one["ci95"]) for one in at])


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
