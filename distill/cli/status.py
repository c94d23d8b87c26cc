"""``distill status``: show the progress of a run from manifests and heartbeats, without blocking any run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.cli.display import duration, phrase
from distill.cli.open import aside, load, workspace_of
from distill.cli.table import show
from pipeline.lock import LOCK, holder, running
from pipeline.plan import StagePlan, Status, plan
from pipeline.workspace import Workspace


def status(pipeline: Path, workspace: Path | None, overrides: Sequence[str], limit: int | None, as_json: bool) -> None:
    spec = load(pipeline, overrides, limit, workspace)
    space = workspace_of(spec)
    rows = [_row(item, space, as_json) for item in plan(spec, space)]
    show(rows, as_json)
    if not space.path.is_dir():
        aside(f"{space.path}: no such workspace (yet) in {Path.cwd()}")
    elif running(space.path):
        aside(f"{space.path}: in use by {holder(space.path / LOCK)}")


def _row(item: StagePlan, space: Workspace, as_json: bool) -> dict[str, Any]:
    state, seconds, done, total, figures = _state(item, space)
    if as_json:
        return {
            "stage": item.spec.name,
            "state": state,
            "seconds": seconds,
            "done": done,
            "total": total,
            "figures": figures,
        }
    progress = f"{done:,}/{total:,}" if total else ""
    time = duration(seconds) if seconds is not None else ""
    return {
        "stage": item.spec.name,
        "state": state,
        "progress": progress,
        "time": time,
        "figures": phrase(figures),
    }


def _state(item: StagePlan, space: Workspace) -> tuple[str, float | None, int | None, int | None, dict[str, Any]]:
    if item.status is Status.CACHED and item.manifest:
        return "done", item.manifest.seconds, None, None, dict(item.manifest.figures)
    if item.identity:
        try:
            path = space.heartbeat(item.identity)
            beat = json.loads(path.read_text())
            state = "running" if running(space.path) == beat["pid"] else "interrupted"
            return state, beat["seconds"], beat["done"], beat["total"], beat["figures"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
    forecast = item.forecast
    return "waiting", None, forecast.done if forecast else None, forecast.total if forecast else None, {}
