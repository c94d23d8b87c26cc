"""The report's sections on thinking: accuracy by thinking budget, and behaviours over training, with their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from distill.evaluation.emergence import CHANGES
from distill.report import svg
from distill.report.words import interval, percent, points, visible

Rows = list[list[str]]
Subjects = Sequence[Mapping[str, Any]]


# -- budgets ----------------------------------------------------------------------------------


def budgets(subjects: Subjects, colours: Mapping[str, str]) -> Markup | None:
    """Accuracy by thinking budget; None if no budget was evaluated."""
    measured = [s for s in subjects if s.get("by_budget")]
    if not measured:
        return None
    names = ["no budget" if at["budget"] is None else f"{at['budget']:,}" for at in measured[0]["by_budget"]]
    lines = []
    for s in measured:
        known = [(float(i), at) for i, at in enumerate(s["by_budget"]) if at["pass_at_1"] is not None]
        places, ends = [(i, at["pass_at_1"]) for i, at in known], [tuple(at["ci95"]) for _, at in known]
        lines.append(svg.Line(visible(s["label"]), places, colours[s["label"]], ends))
    about = "; ".join(f"{line.label}: {', '.join(percent(share) for _, share in line.points)}" for line in lines)
    return Markup(svg.slopes("budgets", "Share solved by thinking budget", about, names, lines))


def budget_rows(subjects: Subjects) -> Rows:
    """One row per model and thinking budget."""
    return [
        [
            visible(s["label"]), "none" if at["budget"] is None else f"{at['budget']:,}",
            f"{at['thinking_tokens']:,.1f}", f"{at['tokens']:,.1f}",
            f"{percent(at['pass_at_1'])} ({interval(at['ci95'])})", f"{at['new']:,} of {at['samples']:,}",
            f"{at['over']:,}",
        ]
        for s in subjects
        for at in s.get("by_budget", ())
    ]  # fmt: skip


def against_rows(subjects: Subjects) -> Rows:
    """With thinking and without: one row per model and source or difficulty."""
    return [
        [
            visible(f"{s['label']}: {row['of']}"), percent(row["thinking"]), percent(row["without"]),
            f"{points(row['difference'])} ({points(row['ci95'][0])} to {points(row['ci95'][1])})",
            f"{row['tokens']:,.1f}", f"{row['tokens_without']:,.1f}", row["says"],
        ]
        for s in subjects
        for row in s.get("against_no_thinking", ())
    ]  # fmt: skip


def does_not_pay(subjects: Subjects) -> list[str]:
    """For each model, where its thinking is not shown to pay; models for which it pays everywhere are left out."""
    found = []
    for s in subjects:
        rows = s.get("against_no_thinking", ())
        where = [row["of"] for row in rows if row["says"] != "pays"]
        if where:
            found.append(visible(f"{s['label']}: {'everywhere' if len(where) == len(rows) else ', '.join(where)}"))
    return found


# -- emergence --------------------------------------------------------------------------------


def emergence(
    observed: Mapping[str, Mapping[str, Any]], subjects: Subjects, colours: Mapping[str, str]
) -> list[dict[str, Any]]:
    """For each stage with rollouts, its tables and one panel per observed behaviour and per source and difficulty."""
    colour_of = {s["stage"]: colours[s["label"]] for s in subjects if s["stage"]}
    found = []
    for stage, seen in observed.items():
        panels = [
            _panel(f"emergence-{stage}-{at}", f"{stage}: {title}", title, values, colour_of.get(stage, "var(--ink-2)"))
            for at, (title, values) in enumerate(_series(seen).items())
        ]
        never = [name.replace("_", " ") for name, one in seen["behaviours"].items() if not one["share"]]
        tables = {"behaviours": behaviour_rows(seen), "changes": change_rows(seen)}
        found.append({"stage": stage, "looked_at": seen["looked_at"], "panels": panels, "never": never, **tables})
    return found


def _series(seen: Mapping[str, Any]) -> dict[str, list[svg.Point]]:
    shown = {name: one["shares"] for name, one in seen["behaviours"].items() if one["share"]}
    shares = {
        f"{name.replace('_', ' ')}: share of rollouts": list(zip(seen["steps"], line, strict=True))
        for name, line in shown.items()
    }
    return shares | {f"{of}: tokens": [(step, n) for step, n in line] for of, line in seen["lengths"].items()}


def _panel(name: str, title: str, short: str, values: Sequence[svg.Point], colour: str) -> dict[str, Any]:
    first, last = svg.number(values[0][1]), svg.number(values[-1][1])
    about = f"from {first} at first to {last} at step {values[-1][0]:.0f}"
    drawn = svg.curve(name, visible(title), about, values, colour, 84)
    return {"title": visible(short), "first": first, "last": last, "svg": Markup(drawn)}


def behaviour_rows(seen: Mapping[str, Any]) -> Rows:
    """One row per behaviour: the share of rollouts at the first point, at the last and overall, and the rewards."""
    return [
        [
            visible(name), percent(one["shares"][0]), percent(one["shares"][-1]), percent(one["share"]),
            *("" if one[key] is None else f"{one[key]:.3f}" for key in ("reward_with", "reward_without")),
        ]
        for name, one in seen["behaviours"].items()
    ]  # fmt: skip


def change_rows(seen: Mapping[str, Any]) -> Rows:
    """One row per source: how answers changed that the thinking had named before."""
    return [
        [visible(source), *(f"{counts.get(change, 0):,}" for change in CHANGES.values())]
        for source, counts in seen["changes_by_source"].items()
    ]
