"""Find and remove what no named pipeline needs any more in a workspace. Called by `distill prune`.

Results are kept by content, so that going back to an earlier setting costs nothing. But each setting that was tried
leaves its artifact, and each abandoned training its checkpoints. Needed is whatever `pipeline.plan` would find: the
artifact or work directory of each stage, by its settings and the records of the stages before it. While an input has
yet to be made, nobody knows what a stage will find, so everything that fits its settings stays. Records always stay:
they are small, lineage is read from them, and the plan reports a record whose artifact is gone.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import manifest as manifests
from pipeline.config import PipelineSpec, StageSpec
from pipeline.files import TEMPORARY, disk_errors, fsync_directory
from pipeline.manifest import Identity, Manifest
from pipeline.plan import changes, identify
from pipeline.stage import result_settings
from pipeline.workspace import Workspace

OURS = re.compile(r"[\w-]+-[0-9a-f]{12}")
"""The names that we give in ``artifacts/`` and ``work/``; anything else there belongs to the user."""


@dataclass(frozen=True, slots=True)
class Unneeded:
    """A file or directory, why it is not needed, its size in bytes, and its last change (seconds since 1970)."""

    path: Path
    why: str
    bytes: int
    written: float


@dataclass
class Needs:
    """The current stages: ``known`` are those whose identity is known, by directory name; ``waiting`` lack an input."""

    known: dict[str, tuple[str, Identity]] = field(default_factory=dict)
    waiting: list[StageSpec] = field(default_factory=list)


def needs(pipelines: Iterable[PipelineSpec], workspace: Workspace) -> Needs:
    """What the pipelines need. A record counts even if its result is damaged: made again, it usually comes out the
    same."""
    found = Needs()
    for pipeline in pipelines:
        made: dict[str, Manifest] = {}
        for spec in pipeline.stages.values():
            if any(name not in made for name in spec.upstream):
                found.waiting.append(spec)
                continue
            identity = identify(spec, {name: made[name] for name in spec.upstream}, workspace.hashes)
            found.known[workspace.artifact(identity.kind, identity.fingerprint).name] = (spec.name, identity)
            if record := manifests.find(workspace.path, identity):
                made[spec.name] = record
    return found


def unneeded(workspace: Workspace, needed: Needs) -> list[Unneeded]:
    """What can be removed. Call this while holding the workspace: otherwise what a run is writing looks abandoned."""
    found = dict.fromkeys(workspace.leftovers(), "left by a killed run")
    for place in ("artifacts", "work"):
        for path in sorted((workspace.path / place).glob("*")):
            ours = OURS.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
            if ours and path.name not in needed.known and path not in found:
                kind, record = path.name.rpartition("-")[0], workspace.recorded(path.name)
                if not _may_be_found(kind, record, needed.waiting):
                    found[path] = ("unfinished: " if place == "work" else "") + _why(kind, record, needed)
    return [Unneeded(path, why, *_measure(path)) for path, why in found.items()]


def _may_be_found(kind: str, record: Manifest | None, waiting: Iterable[StageSpec]) -> bool:
    """Whether a waiting stage may turn out to need the result with this record."""
    same = [spec for spec in waiting if spec.stage.kind == kind]
    return any(record is None or record.identity.settings == result_settings(spec.settings) for spec in same)


def _why(kind: str, record: Manifest | None, needed: Needs) -> str:
    if record is None:
        return f"{kind} without a record"
    now = [identity for stage, identity in needed.known.values() if (stage, identity.kind) == (record.stage, kind)]
    if now:
        return f"{record.stage} with other settings, inputs or version ({'; '.join(changes(record.identity, now[0]))})"
    if any((spec.name, spec.stage.kind) == (record.stage, kind) for spec in needed.waiting):
        return f"{record.stage} with other settings or inputs"
    return f"{record.stage}: no named pipeline has this stage"


def _measure(path: Path) -> tuple[int, float]:
    """(bytes, time of the last change) of a file, or of everything in a directory."""
    files = [Path(root) / name for root, _, names in os.walk(path) for name in names] or [path]
    seen = [os.lstat(file) for file in files]
    return sum(s.st_size for s in seen), max(s.st_mtime for s in seen)


def remove(workspace: Workspace, items: Iterable[Unneeded]) -> None:
    """Delete the items and the links to them. A result is renamed first, so that half of one is never found."""
    for item in items:
        path = item.path
        with disk_errors(path):
            if not path.name.startswith(TEMPORARY):
                path = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
                os.replace(item.path, path / item.path.name)
                fsync_directory(path.parent)
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    for link in list(workspace.path.iterdir()):
        if link.is_symlink() and not link.exists() and os.readlink(link).startswith("artifacts/"):
            link.unlink()
