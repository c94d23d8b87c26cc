"""The section on test-time compute: what each way to spend several samples on a problem comes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from distill.report import svg
from distill.report.rows import Rows
from distill.report.words import interval, percent, points, visible

Search = Mapping[str, Any] | None
COLOURS = [f"var(--{name})" for name in (
    "student-1", "student-2", "student-3", "right", "control-2", "other-4", "control-3", "other-2", "control-1",
)]  # fmt: skip
REFERENCE = "var(--teacher-1)"
"""The majority's, which every other way is measured against."""


def panels(search: Search) -> list[dict[str, Any]]:
    """Two plots: ways that need nothing but samples, and ways that need somebody to score or judge."""
    if not search:
        return []
    colours = _colours(search["strategies"])
    free = [label for label, found in search["strategies"].items() if not found["needs"]]
    helped = [label for label, found in search["strategies"].items() if found["needs"] or found["kind"] == "majority"]
    titles = {"Samples alone": free, "With step scores, or a verifier": helped}
    return [
        _panel(f"search-{at}", title, labels, search, colours)
        for at, (title, labels) in enumerate(titles.items())
        if any(search["strategies"][label]["kind"] != "majority" for label in labels)
    ]


def _colours(strategies: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    others = [label for label, found in strategies.items() if found["kind"] != "majority"]
    own = {label: COLOURS[at % len(COLOURS)] for at, label in enumerate(others)}
    return {label: own.get(label, REFERENCE) for label in strategies}


def _panel(
    name: str, title: str, labels: Sequence[str], search: Mapping[str, Any], colours: Mapping[str, str]
) -> dict[str, Any]:
    lines = []
    for label in labels:
        found = _drawn(search["strategies"][label])
        lines.append(svg.Line(
            visible(label), [(point["tokens"], point["accuracy"]) for point in found], colours[label],
            [tuple(point["ci95"]) for point in found],
        ))  # fmt: skip
    lines = [line for line in lines if line.points]
    if not lines:
        return {"title": title, "svg": "", "lines": []}
    about = "; ".join(
        f"{line.label}: {percent(line.points[-1][1])} for {line.points[-1][0]:,.0f} tokens" for line in lines
    )
    drawn = svg.trade(name, f"{title}: accuracy against tokens", about, lines)
    return {"title": title, "svg": Markup(drawn), "lines": lines}


def _drawn(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points of a curve; of a way that takes no more with a larger budget, one."""
    known = [point for point in found["points"] if point["accuracy"] is not None and point["tokens"] > 0]
    distinct = {(point["tokens"], point["accuracy"]): point for point in reversed(known)}
    return sorted(distinct.values(), key=lambda point: point["tokens"])


def differences(search: Search) -> Markup | None:
    """Each way with its largest budget against a majority that takes as many tokens."""
    if not search:
        return None
    colours, drawn = _colours(search["strategies"]), []
    for label, found in search["strategies"].items():
        point = found["points"][-1]
        against = point["against_majority"]["at_equal_tokens"]
        if found["kind"] == "majority" or not against or against["difference"] is None:
            continue
        drawn.append(svg.Bar(
            visible(f"{label}, {point['samples']}: against {against['samples']:g} sample(s)"), against["difference"],
            tuple(against["ci95"]), points(against["difference"]),
            f"{points(against['ci95'][0])} to {points(against['ci95'][1])}", colours[label],
        ))  # fmt: skip
    if not drawn:
        return None
    about = "; ".join(f"{row.label}: {row.text} points ({row.aside})" for row in drawn)
    return Markup(svg.differences("search-differences", "Against a majority of equal tokens, in points", about, drawn))


def rows(search: Search) -> Rows:
    """One row a strategy and budget."""
    return [
        [
            visible(label), f"{p['samples']}", percent(p["accuracy"]), interval(p["ci95"]), f"{p['calls']:.1f}",
            f"{p['sampled_tokens']:,.0f}", f"{p['scored_tokens']:,.0f}" if p["scored_tokens"] else "",
            percent(p["tokens_saved"]) if p["tokens_saved"] else "",
            *(_against(p["against_majority"][how]) for how in ("at_equal_samples", "at_equal_tokens")),
        ]
        for label, found in (search or {"strategies": {}})["strategies"].items()
        for p in found["points"]
    ]  # fmt: skip


def _against(found: Mapping[str, Any] | None) -> str:
    if not found or found["difference"] is None:
        return ""
    return f"{points(found['difference'])} ({points(found['ci95'][0])} to {points(found['ci95'][1])})"


def rivals(search: Search) -> Rows:
    """One row a search, budget and rival."""
    return [
        [
            visible(r["strategy"]), f"{r['samples']}", visible(r["against"]), f"{r['tokens']:,.0f}",
            points(r["difference"]), f"{points(r['ci95'][0])} to {points(r['ci95'][1])}",
        ]
        for r in (search or {"rivals": []})["rivals"]
    ]  # fmt: skip
