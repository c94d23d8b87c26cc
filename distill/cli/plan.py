"""``distill plan``: show what each stage would do, why, and at what cost. Runs nothing and loads no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.cli.display import duration, number
from distill.cli.open import load, workspace_of
from distill.cli.table import cut, render
from distill.store import Store
from distill.training.memory import size
from pipeline.plan import StagePlan, Status, foresee
from pipeline.plan import plan as make_plan
from pipeline.stage import Forecast


def plan(
    stages: Sequence[str], pipeline: Path, workspace: Path | None, overrides: Sequence[str],
    limit: int | None, as_json: bool, force: Sequence[str] = (),
) -> None:  # fmt: skip
    spec = load(pipeline, overrides, limit, workspace)
    space = workspace_of(spec)
    store = Store(spec.workspace)
    store.refresh()
    store.refuse_foreign()
    plans = make_plan(spec, space, stages, force)
    space.hashes.save() if spec.workspace.is_dir() else None
    to_run = [item for item in plans if item.status is not Status.CACHED]
    if as_json:
        for item in plans:
            print(json.dumps(_as_dict(item)))
    else:
        _show(plans, to_run, spec.workspace)
    foresee([item.spec for item in to_run], {item.spec.name: item for item in plans})


def _show(plans: Sequence[StagePlan], to_run: Sequence[StagePlan], workspace: Path) -> None:
    print(render([_row(item) for item in plans], width=1000))
    print(f"\n{len(plans) - len(to_run)} cached, {len(to_run)} to run in {workspace}" + _total(to_run))


FORESEEN = (
    ("tokens", "max_tokens", "{} tokens"),
    ("cost", "max_cost", "{} to pay"),
    ("", "max_output_cost", "{} to pay for responses"),
    ("seconds", "", "{}"),
    ("memory", "", "{} of memory"),
)
"""The figures of a forecast that are shown: the name of the estimate, the name of the upper bound, the wording."""
LONGEST_WHY = 130
"""Reasons are cut to this length; costs are never cut."""
CAPS = {"cap_leaves": "", "cap_leaves_tokens": " tokens"}


def _row(item: StagePlan) -> dict[str, str]:
    return {
        "stage": item.spec.name,
        "status": str(item.status),
        "why": cut("; ".join(item.reasons), LONGEST_WHY),
        "work": _work(item),
        "last time": duration(item.last_seconds) if item.last_seconds else "",
    }


def _work(item: StagePlan) -> str:
    """``1,200 of 3,000 traces left, at most 192,000 tokens``."""
    forecast = item.forecast
    if item.status is Status.CACHED or forecast is None:
        return ""
    known = {name: number(value) for name, value in forecast.figures.items()}
    if "seconds" in known:
        known["seconds"] = duration(forecast.figures["seconds"])
    if "memory" in known:
        known["memory"] = size(forecast.figures["memory"])
    parts = [_forecast_text(known, *what) for what in FORESEEN if known.keys() & set(what[:2])]
    parts += [f"the cap leaves {known[name]}{unit}" for name, unit in CAPS.items() if name in known]
    return ", ".join([*_counted(forecast), *parts])


def _counted(forecast: Forecast) -> list[str]:
    """``1,200 of 3,000 traces left``, if that is known."""
    if forecast.total is None:
        return []
    left = forecast.total - forecast.done
    least = forecast.figures.get("least_calls", left)
    some = f"{left:,}" if least == left else f"{least:,} to {left:,}"
    unit = forecast.unit.removesuffix("s") if forecast.total == 1 else forecast.unit
    return [f"{some} {unit}" if not forecast.done else f"{some} of {forecast.total:,} {unit} left"]


def _forecast_text(known: Mapping[str, str], usual: str, most: str, words: str) -> str:
    """``about 800 tokens (at most 2,000)``, or the part that is known."""
    if usual not in known:
        return "at most " + words.format(known[most])
    return f"about {words.format(known[usual])}" + (f" (at most {known[most]})" if most in known else "")


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
