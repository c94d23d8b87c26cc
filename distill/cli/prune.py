"""``distill prune``: list what a workspace no longer needs, with sizes and reasons; ``--yes`` deletes it. Loads no
model."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from distill.cli.open import aside, load, workspace_of
from distill.cli.table import show
from pipeline.config import PipelineSpec
from pipeline.errors import InputError
from pipeline.lock import workspace_lock
from pipeline.prune import Unneeded, needs, remove, unneeded

DAY = 86400.0
LONGEST_WHY = 130


def prune(
    pipelines: Sequence[Path], workspace: Path | None, overrides: Sequence[str], limit: int | None,
    keep_days: float, yes: bool, wait: bool, as_json: bool,
) -> None:  # fmt: skip
    if not pipelines:
        raise InputError("name the pipelines whose results to keep: --pipeline FILE, once for each of the workspace's")
    specs = [load(file, overrides, limit, workspace) for file in pipelines]
    space = workspace_of(_one_workspace(specs))
    command = shlex.join(["distill", *sys.argv[1:]])
    with workspace_lock(
        space.path, wait=wait, stopping=lambda: False, command=command, waiting=lambda text: aside(f"waiting {text}")
    ):
        needed = needs(specs, space)
        space.hashes.save()
        before = time.time() - keep_days * DAY
        items = [item for item in unneeded(space, needed) if item.written <= before]
        show([_row(item, space.path, as_json) for item in items], as_json, LONGEST_WHY)
        if yes:
            remove(space, items)
    if not as_json:
        print(f"\n{_summary(items, yes)}")
        if needed.waiting:
            print(f"{len(needed.waiting)} stages wait for others to run; what matches their settings is kept till then")


def _one_workspace(specs: Sequence[PipelineSpec]) -> PipelineSpec:
    """Check that all pipelines have the same workspace, and return the first of them."""
    first = specs[0]
    for other in specs:
        if other.workspace.resolve() != first.workspace.resolve():
            raise InputError(
                f"{first.file} and {other.file}: their workspaces are {first.workspace} and {other.workspace}; "
                "prune one after the other"
            )
    if not (first.workspace / "manifests").is_dir():
        raise InputError(f"{first.workspace}: no such workspace; `distill run` makes it, --workspace names another")
    return first


def _row(item: Unneeded, workspace: Path, as_json: bool) -> dict[str, object]:
    what, written = str(item.path.relative_to(workspace)), datetime.fromtimestamp(item.written, UTC)
    if as_json:
        return {"path": what, "bytes": item.bytes, "written": written.isoformat(timespec="seconds"), "why": item.why}
    return {"what": what, "MB": f"{item.bytes / 1e6:,.1f}", "written": f"{written:%Y-%m-%d %H:%M}", "why": item.why}


def _summary(items: Sequence[Unneeded], yes: bool) -> str:
    if not items:
        return "nothing to delete"
    size = f"{sum(item.bytes for item in items) / 1e6:,.1f} MB"
    return f"{len(items)} deleted, {size} freed" if yes else f"{len(items)} to delete, {size}; --yes deletes them"
