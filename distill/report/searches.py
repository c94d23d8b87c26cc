"""The report's section on test-time compute: the accuracy of each way to spend several samples on a problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from distill.report import svg
from distill.report.rows import Rows
from distill.report.words import interval, percent, points, visible

Search = Mapping[str, Any] | None
COLOURS = [f"var(--{name})" for name in (
    "student-1", "right", "wrong", "student-3", "control-2", "student-2", "ink", "other-4", "control-3", "other-2",
)]  # fmt: skip
REFERENCE = "var(--teacher-1)"
"""The colour of the majority vote, against which every other way is measured."""
AXES = ("samples", "tokens")
"""The figures of a point that curves are plotted against."""

PERFECT = "best_of is by the verifier here: what a perfect judge would choose"


def groups(search: Search) -> list[dict[str, Any]]:
    """One group of ways that need no scores, then one for each scorer, which also shows the majority. Each has two
    plots, against samples and against tokens, all on one scale."""
    if not search:
        return []
    strategies, colours = search["strategies"], _colours(search["strategies"])
    shares = [s for one in strategies.values() for p in _valid_points(one) for s in p["ci95"]]
    free = [one for one in strategies.values() if "scorer" not in one["needs"]]
    aside = PERFECT if any("verifier" in one["needs"] for one in free) else ""
    found = [("Without scores", aside, free)]
    majority = [one for one in strategies.values() if one["kind"] == "majority"]
    for label, scorer in search["scorers"].items():
        if own := [one for one in strategies.values() if "scorer" in one["needs"] and one["by"] == label]:
            found.append((visible(f"Scored by {label}"), _ranks(scorer), majority + own))
    return [
        {
            "title": title,
            "aside": aside,
            "panels": [_panel(f"search-{at}-{axis}", axis, members, colours, shares) for axis in AXES],
        }
        for at, (title, aside, members) in enumerate(found)
        if any(map(_valid_points, members))
    ]


def ways(search: Search) -> list[dict[str, str]]:
    """The legend: each way with its colour."""
    colours = _colours(search["strategies"]) if search else {}
    return [{"label": visible(way), "colour": colour} for way, colour in colours.items()]


def _colours(strategies: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The colour of each way, whichever scorer it uses."""
    kinds = {one["way"]: one["kind"] for one in strategies.values()}
    others = [way for way, kind in kinds.items() if kind != "majority"]
    own = {way: COLOURS[at % len(COLOURS)] for at, way in enumerate(others)}
    return {way: own.get(way, REFERENCE) for way in kinds}


def _ranks(scorer: Mapping[str, Any]) -> str:
    shown = ("n/a" if scorer[name] is None else f"{scorer[name]:.3f}" for name in ("auc", "auc_within"))
    return "AUC of right against wrong samples {}, within a problem {}".format(*shown)


def _panel(
    name: str, axis: str, strategies: Sequence[Mapping[str, Any]], colours: Mapping[str, str], shares: Sequence[float]
) -> dict[str, Any]:
    lines = []
    for one in strategies:
        found = _drawn(one, axis)
        lines.append(svg.Line(
            visible(one["way"]), [(point[axis], point["accuracy"]) for point in found], colours[one["way"]],
            [tuple(point["ci95"]) for point in found],
        ))  # fmt: skip
    lines = [line for line in lines if line.points]
    ends = [(line.label, *line.points[-1]) for line in lines]
    about = "; ".join(f"{label}: {percent(share)} for {cost:,.0f} {axis}" for label, cost, share in ends)
    marks = sorted({cost for line in lines for cost, _ in line.points}) if axis == "samples" else ()
    span = min(shares), max(shares)
    drawn = svg.trade(name, f"accuracy against {axis}", about, lines, axis, span, marks)
    return {"title": f"by {axis} per problem", "svg": Markup(drawn)}


def _valid_points(strategy: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [point for point in strategy["points"] if point["accuracy"] is not None and point["tokens"] > 0]


def _drawn(strategy: Mapping[str, Any], axis: str) -> list[Mapping[str, Any]]:
    """The points of a curve. Points that are equal, because a larger budget is not used up, are drawn once."""
    distinct = {(point["tokens"], point["accuracy"]): point for point in reversed(_valid_points(strategy))}
    return sorted(distinct.values(), key=lambda point: point[axis])


def differences(search: Search) -> Markup | None:
    """Each way with its largest budget against a majority vote that uses as many tokens."""
    if not search:
        return None
    colours, drawn = _colours(search["strategies"]), []
    for label, found in search["strategies"].items():
        point = found["points"][-1]  # if several used as many tokens, take the one with the smallest budget
        point = next((one for one in _drawn(found, "tokens") if one["tokens"] == point["tokens"]), point)
        against = point["against_majority"]["at_equal_tokens"]
        if found["kind"] == "majority" or not against or against["difference"] is None:
            continue
        drawn.append(svg.Bar(
            visible(f"{label}, {point['samples']}: a majority of {_majority_size(against)}"), against["difference"],
            tuple(against["ci95"]), points(against["difference"]),
            f"{points(against['ci95'][0])} to {points(against['ci95'][1])}", colours[found["way"]],
        ))  # fmt: skip
    if not drawn:
        return None
    about = "; ".join(f"{row.label}: {row.text} points ({row.aside})" for row in drawn)
    return Markup(svg.differences("search-differences", "Against a majority of equal tokens, in points", about, drawn))


def rows(search: Search) -> Rows:
    """One row per strategy and budget."""
    return [
        [
            visible(label), f"{p['samples']}", percent(p["accuracy"]), interval(p["ci95"]), f"{p['calls']:.1f}",
            f"{p['sampled_tokens']:,.0f}", f"{p['scored_tokens']:,.0f}" if p["scored_tokens"] else "",
            percent(p["tokens_saved"]) if p["tokens_saved"] else "",
            *(_against(found["kind"], p["against_majority"][how]) for how in ("at_equal_samples", "at_equal_tokens")),
        ]
        for label, found in (search or {"strategies": {}})["strategies"].items()
        for p in found["points"]
    ]  # fmt: skip


def _against(kind: str, found: Mapping[str, Any] | None) -> str:
    if kind == "majority" or not found or found["difference"] is None:
        return ""
    short = f", of {_majority_size(found)}" if found["wished"] > found["samples"] else ""
    return f"{points(found['difference'])} ({points(found['ci95'][0])} to {points(found['ci95'][1])}){short}"


def _majority_size(against: Mapping[str, Any]) -> str:
    """The number of samples in a majority of equal tokens, and the number that the tokens would buy if that is more."""
    wished = f", where its tokens buy {against['wished']:g}" if against["wished"] > against["samples"] else ""
    return f"{against['samples']:g}{wished}"


def rivals(search: Search) -> Rows:
    """One row per search, budget and rival."""
    return [
        [
            visible(r["strategy"]), f"{r['samples']}", visible(r["against"]), f"{r['tokens']:,.0f}",
            points(r["difference"]), f"{points(r['ci95'][0])} to {points(r['ci95'][1])}",
        ]
        for r in (search or {"rivals": []})["rivals"]
    ]  # fmt: skip


def scorers(search: Search) -> Rows:
    """One row per scorer."""
    found = (search or {"scorers": {}})["scorers"]
    return [
        [visible(label), *("n/a" if one[name] is None else f"{one[name]:.3f}" for name in ("auc", "auc_within"))]
        for label, one in found.items()
    ]
