"""``distill plan``: what each stage would do, why, and at what cost. Runs nothing, loads no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from distill.cli.display import duration, number
from distill.cli.open import load, workspace_of
from distill.cli.table import render
from pipeline.plan import StagePlan, Status
from pipeline.plan import plan as make_plan


def plan(
    stages: Sequence[str], pipeline: Path, workspace: Path | None, overrides: Sequence[str],
    limit: int | None, as_json: bool, force: Sequence[str] = (),
) -> None:  # fmt: skip
    spec = load(pipeline, overrides, limit, workspace)
    space = workspace_of(spec)
    plans = make_plan(spec, space, stages, force)
    space.hashes.save() if spec.workspace.is_dir() else None
    if as_json:
        for item in plans:
            print(json.dumps(_as_dict(item)))
        return
    print(render([_row(item) for item in plans], width=90))
    to_run = [item for item in plans if item.status is not Status.CACHED]
    print(f"\n{len(plans) - len(to_run)} cached, {len(to_run)} to run in {spec.workspace}" + _total(to_run))


FORESEEN = {
    "tokens": "about {} tokens",
    "max_tokens": "at most {} tokens",
    "cost": "about {} to pay",
    "max_cost": "at most {} to pay",
    "max_output_cost": "at most {} to pay for responses",
    "cap_leaves": "the cap leaves {}",
    "cap_leaves_tokens": "the cap leaves {} tokens",
    "seconds": "about {}",
}
"""Figures of a forecast, in the order in which they are told."""


def _row(item: StagePlan) -> dict[str, str]:
    return {
        "stage": item.spec.name,
        "status": str(item.status),
        "why": "; ".join(item.reasons),
        "work": _work(item),
        "last time": duration(item.last_seconds) if item.last_seconds else "",
    }


def _work(item: StagePlan) -> str:
    """``1,200 of 3,000 traces left, at most 192,000 tokens``."""
    forecast = item.forecast
    if item.status is Status.CACHED or forecast is None or forecast.total is None:
        return ""
    left = forecast.total - forecast.done
    text = f"{left:,} {forecast.unit}" if not forecast.done else f"{left:,} of {forecast.total:,} {forecast.unit} left"
    known = {name: number(value) for name, value in forecast.figures.items()}
    if "seconds" in forecast.figures:
        known["seconds"] = duration(forecast.figures["seconds"])
    return ", ".join([text, *(words.format(known[name]) for name, words in FORESEEN.items() if name in known)])


def _total(items: Sequence[StagePlan]) -> str:
    known = [item.last_seconds for item in items if item.last_seconds]
    return f"; they took {duration(sum(known))} last time" if known else ""


def _as_dict(item: StagePlan) -> dict[str, object]:
    forecast = item.forecast
    return {
        "stage": item.spec.name,
        "kind": item.spec.stage.kind,
        "status": str(item.status),
        "reasons": list(item.reasons),
        "fingerprint": item.identity.fingerprint if item.identity else None,
        "unit": forecast.unit if forecast else None,
        "total": forecast.total if forecast else None,
        "done": forecast.done if forecast else None,
        "figures": dict(forecast.figures) if forecast else {},
        "last_seconds": item.last_seconds,
    }
