"""Render the report as one self-contained HTML page, a pure function of the report's data.

The page loads nothing and runs nothing: its content security policy forbids scripts and the network. Text written by
models is escaped, and control characters are made visible. ``report.html.j2`` holds the wording and the order,
``style.css.j2`` the style, and `distill.report.svg` the plots. This module prepares the data for them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from distill.cli.display import duration, number, phrase
from distill.evaluation import difficulty
from distill.report import judging, rows, searches, svg, thinking, words
from distill.report.data import Report
from distill.report.words import count, interval, percent, points, visible

COLOURS = {"teacher": 1, "base": 1, "student": 3, "control": 3, "other": 4}
"""The number of colours that the style sheet has for each role."""

METRICS = {
    "loss": "loss",
    "reward": "reward",
    "solved_without_preference": "solved, if all problems were drawn alike",
    "heldout_pass_at_1": "held-out pass@1",
    "worst_step": "worst step, by the reward model",
    "length": "tokens per rollout",
    "entropy": "entropy",
    "zero_variance": "tied groups",
    "truncated": "cut off",
    "distinct": "distinct answers per group",
    "kl": "KL to the start",
    "value_explained": "variance explained by the value head",
    "logprob_gap": "engine against trainer, nats",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
}
"""The curves that are drawn, in this order; the others are only in the JSON. Losses and rewards are drawn large."""
LARGE = ("loss", "reward")
STRATEGIES = {"majority": "Most frequent answer of k samples", "pass": "Any of k samples right"}
"""Ways to spend several samples on a problem, as `distill.evaluation.scoring.by_samples` computes them."""


def render(report: Report) -> str:
    """The HTML of `distill.report.data.gather`'s result."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        percent=percent, duration=duration, number=number, phrase=phrase, visible=visible,
        interval=interval, points=points, count=count, pretty=_pretty,
    )  # fmt: skip
    subjects = [report[label] for label in report["models"]]
    story = [s for s in subjects if s["role"] in ("base", "student")]
    colours = colours_of(subjects)
    families, lengths = _families(subjects, colours), _lengths(report, subjects, colours)
    length_labels = [panel["subject"]["label"] for panel in lengths["panels"]]
    return environment.get_template("report.html.j2").render(
        report=report,
        subjects=subjects,
        headline=_headline(report["headline"], story, colours),
        story=story,
        teacher=next((s for s in subjects if s["role"] == "teacher"), None),
        colours=colours,
        accuracy=_accuracy(subjects, colours),
        differences=_differences(report, colours),
        funnel=_funnel(report["funnel"]),
        bias=_bias(report["funnel"]),
        curves=_curves(report, subjects, colours),
        emergence=thinking.emergence(report["emergence"], subjects, colours),
        families=families,
        by_samples=_by_samples(subjects, colours),
        search_groups=searches.groups(report["search"]),
        search_ways=searches.ways(report["search"]),
        scorer_rows=searches.scorers(report["search"]),
        search_differences=searches.differences(report["search"]),
        search_rows=searches.rows(report["search"]),
        rival_rows=searches.rivals(report["search"]),
        lengths=lengths,
        length_labels=length_labels,
        accuracy_rows=rows.accuracy(subjects),
        difference_rows=rows.differences(report["paired"]),
        pair_rows=rows.differences(report["pairs"]),
        contamination_rows=rows.contamination(subjects),
        funnel_rows=rows.funnel(report["funnel"]),
        bias_rows=rows.bias(report["funnel"]),
        family_rows=rows.families(families, report["models"]),
        sample_rows=rows.by_samples(subjects),
        by_budget=thinking.budgets(subjects, colours),
        budget_rows=thinking.budget_rows(subjects),
        against_rows=thinking.against_rows(subjects),
        does_not_pay=thinking.does_not_pay(subjects),
        model_rows=judging.model_rows(report["reward_models"]),
        reliability=judging.reliability(report["reward_models"]),
        judging=judging,
        third_rows=rows.by_length(subjects),
        length_rows=rows.lengths(report, length_labels),
        longest_stage=max((stage["seconds"] for stage in report["stages"]), default=0) or 1,
    )


# -- colours -----------------------------------------------------------------------------------


def colours_of(subjects: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A CSS variable for each model: ``var(--student-2)``."""
    seen: dict[str, int] = {}
    found = {}
    for subject in subjects:
        role = subject["role"]
        found[subject["label"]] = f"var(--{role}-{seen.get(role, 0) % COLOURS[role] + 1})"
        seen[role] = seen.get(role, 0) + 1
    return found


def _headline(text: str, story: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> Markup:
    """The headline with each model's share in its colour and its interval in small print. The level of the intervals is
    dropped, because the tiles below state it."""
    whole = str(escape(visible(text.replace(f" {words.LEVEL}", ""))))
    for subject in story:
        share = percent(subject["pass_at_1"])
        coloured = f'<em style="--colour: {colours[subject["label"]]}">{share}</em>'
        whole = re.sub(rf"(?<![\d.>]){re.escape(share)}(?!<)", coloured, whole, count=1)
    return Markup(re.sub(r"\(([\d.]+ to [\d.]+)\)", r"<small>\1</small>", whole))


def _pretty(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=1, ensure_ascii=False)


def _describe(subject: Mapping[str, Any]) -> str:
    return f"{subject['label']} {percent(subject['pass_at_1'])}"


# -- the sections -----------------------------------------------------------------------------


def _accuracy(subjects: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> Markup:
    drawn = [
        svg.Bar(
            visible(s["label"]), s["pass_at_1"], tuple(s["ci95"]), percent(s["pass_at_1"]), interval(s["ci95"]),
            colours[s["label"]], s.get("greedy"),
        )
        for s in subjects
    ]  # fmt: skip
    about = "; ".join(f"{_describe(s)} (95%: {interval(s['ci95'])})" for s in subjects)
    return Markup(svg.bars("accuracy", "Share of problems solved", visible(about), drawn))


def _differences(report: Report, colours: Mapping[str, str]) -> Markup:
    drawn = [
        svg.Bar(
            visible(f"{step['from']} → {step['to']}"), step["difference"], tuple(step["ci95"]),
            points(step["difference"]), f"{points(step['ci95'][0])} to {points(step['ci95'][1])}", colours[step["to"]],
        )
        for step in report["paired"]
    ]  # fmt: skip
    about = "; ".join(f"{row.label}: {row.text} points ({row.aside})" for row in drawn)
    return Markup(svg.differences("differences", "Differences on the same problems, in points", about, drawn))


def _funnel(funnel: Mapping[str, Any] | None) -> Markup | None:
    if not funnel or not funnel["generated"]:
        return None
    whole = left = funnel["generated"]
    drawn = [svg.Piece("traces generated", 0, 1, f"{whole:,}", "var(--ink-2)")]
    for rejected in funnel["rejected"]:
        start = (left - rejected["traces"]) / whole
        text = f"−{rejected['traces']:,}"
        drawn.append(svg.Piece(visible(rejected["reason"]), start, left / whole, text, "var(--wrong)"))
        left -= rejected["traces"]
    text = f"{left:,} · {100 * left / whole:.1f}%"
    drawn.append(svg.Piece("kept for training", 0, left / whole, text, "var(--right)"))
    about = "; ".join(f"{row.label}: {row.text}" for row in drawn)
    return Markup(svg.waterfall("funnel", "From generated to kept", about, drawn))


def _bias(funnel: Mapping[str, Any] | None) -> Markup | None:
    """The share of the generated and of the kept traces in each bin of difficulty."""
    found = (funnel or {}).get("bias")
    if not found or len(found["bins"]) < 2:
        return None
    parts = (("generated", "generated", "var(--ink-2)"), ("kept", "kept for training", "var(--right)"))
    lines = []
    for of, label, colour in parts:
        shares = difficulty.shares(found, of)
        points = [(float(at), share) for at, share in enumerate(shares)]
        lines.append(svg.Line(label, points, colour, [(share, share) for share in shares]))
    bins = [visible(row["bin"]) for row in found["bins"]]
    return Markup(svg.slopes("bias", f"Share of traces by {found['by']}", visible(found["says"]), bins, lines))


def _curves(
    report: Report,
    subjects: Sequence[Mapping[str, Any]],
    colours: Mapping[str, str],
) -> list[dict[str, Any]]:
    """For each stage, its alarms and its panels with title, first and last value and plot. For controls, only small
    plots of loss and reward."""
    subject_of = {s["stage"]: s for s in subjects if s["stage"]}
    found = []
    for stage, metrics in report["curves"].items():
        subject = subject_of.get(stage)
        colour = colours[subject["label"]] if subject else "var(--ink-2)"
        control = bool(subject and subject["role"] == "control")
        names = [name for name in METRICS if metrics.get(name) and (name in LARGE or not control)]
        panels = [_panel(stage, name, metrics[name], colour, name in LARGE and not control) for name in names]
        if panels:
            table = [[f"{stage}: {panel['title']}", panel["first"], panel["last"]] for panel in panels]
            alarms, back = report["alarms"].get(stage, []), report["rolled_back"].get(stage)
            found.append(
                {"stage": stage, "control": control, "panels": panels, "rows": table, "alarms": alarms, "back": back}
            )
    return found


def _panel(stage: str, name: str, values: Sequence[svg.Point], colour: str, large: bool) -> dict[str, Any]:
    first, last = svg.number(values[0][1]), svg.number(values[-1][1])
    title, about = METRICS[name], f"from {first} at first to {last} at step {values[-1][0]:.0f}"
    drawn = svg.curve(f"curve-{stage}-{name}", f"{stage}: {title}", about, values, colour, 180 if large else 84)
    return {"title": title, "first": first, "last": last, "large": large, "svg": Markup(drawn)}


def _families(subjects: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """One panel per source: accuracy by difficulty, or overall if the difficulty is unknown."""
    sources = sorted({name for s in subjects for name in s["by_source"]})
    return [_family(index, source, subjects, colours) for index, source in enumerate(sources)]


def _family(
    index: int, source: str, subjects: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
) -> dict[str, Any]:
    scores = {s["label"]: _by_difficulty(s, source) for s in subjects}
    levels = sorted({level for by_level in scores.values() for level in by_level}, key=lambda text: (len(text), text))
    lines = []
    for label, by_level in scores.items():
        known = [
            (float(i), by_level[level])
            for i, level in enumerate(levels)
            if level in by_level and by_level[level]["pass_at_1"] is not None
        ]
        places = [(i, score["pass_at_1"]) for i, score in known]
        lines.append(svg.Line(visible(label), places, colours[label], [tuple(score["ci95"]) for _, score in known]))
    whole = [{"label": s["label"], **s["by_source"][source]} for s in subjects if source in s["by_source"]]
    about = "; ".join(map(_describe, whole))
    drawn = svg.slopes(f"family-{index}", f"{source}: share solved by difficulty", visible(about), levels, lines)
    return {"source": source, "levels": levels, "scores": scores, "svg": Markup(drawn)}


def _by_samples(subjects: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """One panel per strategy: accuracy by number of samples. Empty if there is one sample per problem."""
    counts = sorted({point["samples"] for subject in subjects for point in subject["by_samples"]})
    return [_strategy(name, counts, subjects, colours) for name in STRATEGIES] if counts else []


def _strategy(
    name: str, counts: Sequence[int], subjects: Sequence[Mapping[str, Any]], colours: Mapping[str, str]
) -> dict[str, Any]:
    lines = []
    for subject in subjects:
        found = [(float(counts.index(point["samples"])), point[name]) for point in subject["by_samples"]]
        places = [(i, score["accuracy"]) for i, score in found]
        intervals = [tuple(score["ci95"]) for _, score in found]
        lines.append(svg.Line(visible(subject["label"]), places, colours[subject["label"]], intervals))
    about = "; ".join(f"{line.label}: {percent(line.points[-1][1])}" for line in lines if line.points)
    drawn = svg.slopes(f"samples-{name}", STRATEGIES[name], about, list(map(str, counts)), lines)
    return {"title": STRATEGIES[name], "svg": Markup(drawn)}


def _by_difficulty(subject: Mapping[str, Any], source: str) -> dict[str, Mapping[str, Any]]:
    prefix = f"{source}/"
    found = {k.removeprefix(prefix): v for k, v in subject["by_difficulty"].items() if k.rpartition("/")[0] == source}
    if not found and source in subject["by_source"]:
        return {"all": subject["by_source"][source]}
    return found


def _lengths(report: Report, subjects: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> dict[str, Any]:
    """Histograms of the teacher, the base and the students, or of all models without these, one below the other on one
    scale."""
    edges, models = report["lengths"]["edges"], report["lengths"]["models"]
    shown = [s for s in subjects if s["role"] in ("teacher", "base", "student")] or list(subjects)
    panels = []
    for index, subject in enumerate(shown):
        counts = models[subject["label"]]
        mean = subject["tokens_per_answer"]
        title = f"{subject['label']}: tokens per answer"
        about = f"mean {mean:.1f} tokens; {sum(counts['right']):,} right and {sum(counts['other']):,} other answers"
        drawn = svg.histogram(
            f"length-{index}", visible(title), about, counts["right"], counts["other"],
            colours[subject["label"]], mean / edges[-1],
        )  # fmt: skip
        panels.append({"subject": subject, "svg": Markup(drawn)})
    return {"panels": panels, "axis": Markup(svg.scale("length-axis", edges)), "edges": edges}
