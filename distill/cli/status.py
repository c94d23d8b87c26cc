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
from pipeline.plan import StagePlan, plan
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
    found = {"stage": item.spec.name, **_state(item, space)}
    if as_json:
        return found
    return {
        "stage": found["stage"],
        "state": found["state"],
        "progress": f"{found['done']:,}/{found['total']:,}" if found["total"] else "",
        "time": "" if found["seconds"] is None else duration(found["seconds"]),
        "figures": phrase(found["figures"]),
    }


def _state(item: StagePlan, space: Workspace) -> dict[str, Any]:
    if made := item.manifest:
        return {"state": "done", "seconds": made.seconds, "done": None, "total": None, "figures": made.figures}
    if item.identity:
        try:
            beat = json.loads(space.heartbeat(item.identity).read_text())
            state = "running" if running(space.path) == beat["pid"] else "interrupted"
            return {"state": state, **{name: beat[name] for name in ("seconds", "done", "total", "figures")}}
        except (OSError, ValueError, KeyError, TypeError):
            pass
    done, total = (item.forecast.done, item.forecast.total) if item.forecast else (None, None)
    return {"state": "waiting", "seconds": None, "done": done, "total": total, "figures": {}}
