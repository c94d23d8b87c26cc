"""Renders a data set's card: Markdown below the YAML header that the hub reads.

Deterministic, and based on nothing but `distill.dataset.facts`. The card names what was not checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distill.dataset.facts import MOST_ROWS, Facts

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def render(facts: Facts) -> str:
    parts = [_header(facts), _summary(facts), _problems(facts), _teacher(facts), _verified(facts), _lengths(facts)]
    parts += [_overlap(facts), _price(facts), _columns(), _reproduce(facts)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _header(facts: Facts) -> str:
    traces = facts["totals"]["traces"]
    licences = sorted({(row["licence"] or "unknown").lower() for row in facts["problems"]}) or ["unknown"]
    header = {
        "pretty_name": facts["name"],
        "license": licences[0] if len(licences) == 1 else licences,
        "task_categories": ["text-generation"],
        "tags": ["reasoning", "distillation", "synthetic", "distill"],
        "size_categories": [next((name for most, name in SIZES if traces < most), "n>1M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in header.items()]  # JSON is YAML
    return "\n".join(["---", *lines, "---"])


def _summary(facts: Facts) -> str:
    totals = facts["totals"]
    every = totals["imported"] == totals["traces"]
    origin = "imported" if every else "sampled or imported" if totals["imported"] else "sampled"
    text = f"# {facts['name']}\n\n{totals['traces']:,} reasoning traces on {totals['problems']:,} problems, {origin} "
    text += f"and kept by distill {facts['distill']}: {totals['thinking_tokens']:,} tokens of thinking, "
    text += f"{totals['answer_tokens']:,} of answers."
    if facts["conditions"]:
        text += f"\n\nChosen by {'; '.join(f'`{condition}`' for condition in facts['conditions'])}."
    return text


def _problems(facts: Facts) -> str:
    return f"## Problems\n\n{table(facts['problems'])}"


def _teacher(facts: Facts) -> str:
    parts = ["## Teacher, prompts and sampling", table(facts["teachers"])]
    if facts["totals"]["imported"]:
        parts.append(
            "The sampling settings of imported traces are not known, and their tokens are estimated from the texts, at "
            "four characters per token."
        )
    parts.append(table(facts["sampling"]))
    systems = [row for row in facts["systems"] if row["system"]]
    parts.append(f"System prompts:\n\n{table(systems)}" if systems else "No system prompt.")
    if facts["example"]:
        parts.append(f"The prompt of one trace, as the model saw it:\n\n{fenced(facts['example'][:2000])}")
    return "\n\n".join(parts)


def _verified(facts: Facts) -> str:
    judged = table(facts["verifiers"]) if facts["verifiers"] else "No verifier has judged these traces."
    return f"## Verification\n\n{judged}\n\nFrom generated to kept:\n\n{table(facts['funnel'])}"


def _lengths(facts: Facts) -> str:
    return f"## Lengths, in tokens\n\n{table(facts['lengths'])}"


def _overlap(facts: Facts) -> str:
    same, held = facts["duplicates"]["same_text"], facts["heldout"]
    lines = [f"- Traces that repeat the text of an earlier one: {same:,}."]
    lines.append(
        f"- Prompts that are also among the {held['heldout']:,} held-out ones of the pipeline: {held['shared']:,}."
        if held["heldout"]
        else "- The pipeline holds out no problems."
    )
    if facts["overlap"] is None:
        lines.append("- Overlap with evaluation sets: not checked.")
        return "\n".join(["## Duplicates and overlap\n", *lines])
    return (
        "\n".join(["## Duplicates and overlap\n", *lines])
        + f"\n\nProblems that overlap with evaluation sets, as curation found:\n\n{table(facts['overlap'])}"
    )


def _price(facts: Facts) -> str:
    totals, cost = facts["totals"], facts["cost"]
    tokens = totals["thinking_tokens"] + totals["answer_tokens"]
    made = sum(row["tokens"] or 0 for row in facts["funnel"])
    text = f"## Price\n\nThese traces took {totals['prompt_tokens']:,} prompt tokens and {tokens:,} sampled ones"
    text += f"; with what was rejected, {made:,} were sampled." if made > tokens else "."
    if cost is None:
        return f"{text} No bill is recorded."
    billed = f"{cost['chosen'] or 0:.4f} for these, {cost['total']:.4f} for all calls of the workspace"
    return f"{text} Billed, in the currency of the prices: {billed}."


def _columns() -> str:
    return (
        "## Columns\n\n`messages` is the conversation, with the thinking between `<think>` and `</think>` in the "
        "assistant's turn; `thinking` and `answer` are its parts, `prompt` the question, `reference` what the verifier "
        "compared with. `outcome`, `score` and `verifier` are those of the verdict that the exported stage gave, or "
        "selected the trace by, or else of its newest verdict. `id` is the trace's key in the store."
    )


def _reproduce(facts: Facts) -> str:
    software = ", ".join(f"{name} {version}" for name, version in facts["software"].items())
    parts = ["## How to reproduce", f"Made with {software or 'distill ' + facts['distill']}."]
    if facts["pipeline"]:
        name, text = facts["pipeline"]["name"], facts["pipeline"]["text"]
        parts.append(f"`distill run --pipeline {name}`, where `{name}` is:\n\n{fenced(text, 'yaml')}")
    if not facts["stages"]:
        parts.append("This workspace has no record of a pipeline's stages.")
    for stage in facts["stages"]:
        recorded = {"settings": stage["settings"], **({"read": stage["files"]} if stage["files"] else {})}
        parts.append(
            f"Stage `{stage['stage']}` (kind {stage['kind']}, version {stage['version']}), "
            f"fingerprint `{stage['fingerprint']}`:\n\n"
            f"{fenced(json.dumps(recorded, indent=1, ensure_ascii=False, default=str), 'json')}"
        )
    return "\n\n".join(parts)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, without the columns that are empty in every row."""
    if not rows:
        return "None."
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    head = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", f"|{'---|' * len(names)}"]
    body = [f"| {' | '.join(_cell(row[name]) for name in names)} |" for row in rows[:MOST_ROWS]]
    more = [f"\n({len(rows) - MOST_ROWS:,} more rows)"] if len(rows) > MOST_ROWS else []
    return "\n".join([*head, *body, *more])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())
    text = text if len(text) <= 300 else f"{text[:299]}…"
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def fenced(text: str, language: str = "") -> str:
    """A code block, with a fence longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
