"""The record of what has run: one manifest per completed stage, written last and named by its fingerprint.

A stage is complete only if there is a manifest with its fingerprint; nothing is inferred from other files.
(`pipeline.workspace` checks whether the recorded result is still whole.) Manifests lie at
``manifests/<kind>/<fingerprint>.json``, so two pipelines in one workspace share what they have in common,
and going back to an old setting costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.files import write_atomic
from pipeline.fingerprint import content_hash

STANDING = "current.json"
"""Maps stage names to their current manifests. It may be lost: it only serves people who name a stage."""


@dataclass(frozen=True)
class Identity:
    """Everything that a stage's result depends on. Its hash is the fingerprint.

    ``inputs`` maps each input setting to the digest of the output that feeds it. ``files`` maps whatever
    else is read to content hashes.
    """

    kind: str
    version: int
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        return content_hash(asdict(self))


@dataclass(frozen=True)
class Manifest:
    """A completed stage. ``digest`` identifies the output's content; ``seconds`` is the sum over all attempts."""

    stage: str
    fingerprint: str
    identity: Identity
    digest: str
    figures: Mapping[str, Any]
    seconds: float
    finished: str
    artifact: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """The artifact's files by relative name, with their content hashes."""
    software: Mapping[str, str] = field(default_factory=dict)


def directory(workspace: Path) -> Path:
    return workspace / "manifests"


def path_of(workspace: Path, kind: str, fingerprint: str) -> Path:
    return directory(workspace) / kind / f"{fingerprint}.json"


def write(workspace: Path, manifest: Manifest) -> None:
    path = path_of(workspace, manifest.identity.kind, manifest.fingerprint)
    write_atomic(path, json.dumps(asdict(manifest), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read(path: Path) -> Manifest | None:
    """The manifest at ``path``; None if it is absent or damaged (the stage then runs again)."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        manifest = Manifest(**{**data, "identity": Identity(**data["identity"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return manifest if manifest.identity.fingerprint == manifest.fingerprint == path.stem else None


def find(workspace: Path, identity: Identity) -> Manifest | None:
    return read(path_of(workspace, identity.kind, identity.fingerprint))


def stand(workspace: Path, stage: str, manifest: Manifest) -> None:
    """Make this the current manifest of the stage. Going back to old settings writes no new manifest, so the newest is
    not always the one that the last run was about."""
    known, place = _standing(workspace), f"{manifest.identity.kind}/{manifest.fingerprint}"
    if known.get(stage) != place:
        write_atomic(directory(workspace) / STANDING, json.dumps({**known, stage: place}, indent=1) + "\n")


def current(workspace: Path, stage: str) -> Manifest | None:
    """The manifest that the last run of the stage made or found; None if that is not known."""
    kind, _, fingerprint = _standing(workspace).get(stage, "").partition("/")
    return read(path_of(workspace, kind, fingerprint)) if fingerprint else None


def _standing(workspace: Path) -> dict[str, str]:
    try:
        found = json.loads((directory(workspace) / STANDING).read_text())
    except (OSError, ValueError):
        return {}
    return {str(stage): str(place) for stage, place in found.items()} if isinstance(found, dict) else {}


def newest(workspace: Path, kind: str, stage: str) -> Manifest | None:
    """The stage's manifest that was written last. A stage that was renamed since has only a current one."""
    known = (read(path) for path in (directory(workspace) / kind).glob("*.json"))
    found = max((m for m in known if m and m.stage == stage), key=lambda m: m.finished, default=None)
    standing = None if found else current(workspace, stage)
    return standing if standing and standing.identity.kind == kind else found
