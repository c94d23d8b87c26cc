"""The record: one manifest for each completed stage, written last, by content.

A stage is complete when a manifest with its fingerprint says so; nothing is inferred from a file
being there. Manifests lie at ``manifests/<kind>/<fingerprint>.json``, so that two pipelines in one
workspace share what they have in common and going back to an old setting costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.files import write_atomic
from pipeline.fingerprint import content_hash

STANDING = "current.json"
"""By stage name, the record at which it stands. It may be lost: it is for people who name a stage."""


@dataclass(frozen=True)
class Identity:
    """All that a stage's result depends on. Its hash is the fingerprint.

    ``inputs`` maps each input setting to the digest of the output that feeds it; ``files`` maps what
    is read from outside to content hashes.
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
    """``digest`` identifies the output's content; ``seconds`` are all attempts' together."""

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
    """The manifest at ``path``; None where it is absent or damaged (the stage then runs again)."""
    try:
        data = json.loads(path.read_text())
        manifest = Manifest(**{**data, "identity": Identity(**data["identity"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return manifest if manifest.identity.fingerprint == manifest.fingerprint == path.stem else None


def find(workspace: Path, identity: Identity) -> Manifest | None:
    return read(path_of(workspace, identity.kind, identity.fingerprint))


def stand(workspace: Path, stage: str, manifest: Manifest) -> None:
    """Note that a stage of that name stands at this record. Going back to old settings makes no new record, so
    the newest is not always the one that the last run was about."""
    known, place = _standing(workspace), f"{manifest.identity.kind}/{manifest.fingerprint}"
    if known.get(stage) != place:
        write_atomic(directory(workspace) / STANDING, json.dumps({**known, stage: place}, indent=1) + "\n")


def current(workspace: Path, stage: str) -> Manifest | None:
    """The record that the last run of a stage of that name has made or found; None where that is not known."""
    kind, _, fingerprint = _standing(workspace).get(stage, "").partition("/")
    return read(path_of(workspace, kind, fingerprint)) if fingerprint else None


def _standing(workspace: Path) -> dict[str, str]:
    try:
        found = json.loads((directory(workspace) / STANDING).read_text())
    except (OSError, ValueError):
        return {}
    return {str(stage): str(place) for stage, place in found.items()} if isinstance(found, dict) else {}


def history(workspace: Path, kind: str, stage: str) -> Iterator[Manifest]:
    """Earlier manifests of this kind, the stage's own first, then the newest first."""
    known = [m for p in (directory(workspace) / kind).glob("*.json") if (m := read(p))]
    yield from sorted(known, key=lambda m: (m.stage == stage, m.finished), reverse=True)
