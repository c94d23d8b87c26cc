"""A run's directory on disk, and what a stage sees of it.

Layout: ``manifests/`` holds the record, ``artifacts/`` finished results by content, ``work/`` what is under
construction (it survives crashes). Links by stage name are for people.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import manifest as manifests
from pipeline.config import StageSpec
from pipeline.events import Listener
from pipeline.files import TEMPORARY, make_directory, publish_directory, write_atomic
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Identity, Manifest
from pipeline.scratch import sweep_directory

HEARTBEAT = "heartbeat.json"
HEARTBEAT_SECONDS = 1.0


class Workspace:
    """A run's directory: manifests, artifacts, work in progress, links by stage name."""

    def __init__(self, path: Path, software: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.software = dict(software or {})
        self.hashes = FileHashes(path / ".hashes.json")

    def make(self) -> None:
        """Create the directories, so that a stage with the name of one of them is refused before it runs."""
        for name in ("manifests", "artifacts", "work"):
            make_directory(self.path / name)

    def sweep(self) -> None:
        """Remove what killed runs have left (`leftovers`). Call this only while holding the workspace."""
        for left in self.leftovers():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        for left in self.path.glob(f"{TEMPORARY}snapshot-*"):
            sweep_directory(left)

    def leftovers(self) -> list[Path]:
        """Unfinished files, and the work directories of complete stages. The work of an unfinished stage is not a
        leftover, whatever its settings: the stage may resume. Neither is the work of a stage whose result was deleted
        since: it is making the result again."""
        places = [(name, f"**/{TEMPORARY}*") for name in ("manifests", "artifacts", "shards", "journal")]
        found = [left for name, pattern in [*places, ("work", f"{TEMPORARY}*")]
                 for left in (self.path / name).glob(pattern)]  # fmt: skip
        return found + [work for work in (self.path / "work").glob("*") if self._complete(work.name)]

    def _complete(self, name: str) -> bool:
        made = self.recorded(name)
        return made is not None and not (made.artifact and self._damage(self.path / made.artifact, made.files))

    def recorded(self, name: str) -> Manifest | None:
        """The manifest that belongs to a directory in ``artifacts/`` or ``work/``, by the directory's name."""
        kind, _, short = name.rpartition("-")
        found = (manifests.read(path) for path in (manifests.directory(self.path) / kind).glob("*.json")
                 if path.stem.startswith(short))  # fmt: skip
        return next((made for made in found if made), None)

    def artifact(self, kind: str, fingerprint: str) -> Path:
        return self.path / "artifacts" / f"{kind}-{fingerprint[:12]}"

    def work(self, kind: str, fingerprint: str) -> Path:
        return self.path / "work" / f"{kind}-{fingerprint[:12]}"

    def begun(self, identity: Identity) -> bool:
        """Whether an attempt has left its work directory. A stage that completes removes it."""
        return self.work(identity.kind, identity.fingerprint).exists()

    def has_part(self, identity: Identity) -> bool:
        """Whether an attempt has left more than its heartbeat."""
        left = self.work(identity.kind, identity.fingerprint).rglob("*")
        return any(path.is_file() and path.name != HEARTBEAT for path in left)

    def heartbeat(self, identity: Identity) -> Path:
        return self.work(identity.kind, identity.fingerprint) / HEARTBEAT

    def context(self, spec: StageSpec, fingerprint: str, inputs: Mapping[str, Manifest], **more: Any) -> StageContext:
        kind = spec.stage.kind
        return StageContext(
            spec.name, kind, fingerprint, self.path, inputs, self.artifact(kind, fingerprint),
            self.work(kind, fingerprint), hashes=self.hashes, **more,
        )  # fmt: skip

    def lost(self, spec: StageSpec, found: Manifest, inputs: Mapping[str, Manifest]) -> str | None:
        """Why a recorded output is no longer whole, or None."""
        if found.artifact and (wrong := self._damage(self.path / found.artifact, found.files)):
            return f"its artifact {found.artifact} {wrong}"
        if spec.stage.check:
            return spec.stage.check(self.context(spec, found.fingerprint, inputs), found)
        return None

    def _damage(self, artifact: Path, files: Mapping[str, str]) -> str | None:
        """What is wrong with an artifact, or None. Markdown files (the model card) may be edited, others may not."""
        if not artifact.is_dir():
            return "is gone"
        there = self.hashes.tree(artifact)
        for name, value in files.items():
            if name not in there:
                return f"lacks {name}"
            if there[name] != value and not name.endswith(".md"):
                return f"was changed: {name}"
        return None


@dataclass
class StageContext:
    """What a stage may know and use while it runs (`pipeline.stage.Context`)."""

    name: str
    kind: str
    fingerprint: str
    workspace: Path
    inputs: Mapping[str, Manifest]
    artifact: Path
    work: Path
    hashes: FileHashes
    stopping: Callable[[], bool] = lambda: False
    listener: Listener | None = None
    published: dict[str, str] | None = None
    _clock: Clock | None = None

    def progress(self, done: int, total: int | None, **figures: Any) -> None:
        if self._clock:
            self._clock.beat(done, total, figures)
        if self.listener:
            self.listener.progress(self.name, done, total, figures)

    def note(self, text: str) -> None:
        if self.listener:
            self.listener.note(self.name, text)

    def publish(self, built: Path) -> str:
        """Make ``built`` the stage's artifact; returns its content hash."""
        publish_directory(built, self.artifact)
        self.published = self.hashes.tree(self.artifact)
        return self.hashes.of(self.artifact)


@dataclass
class Clock:
    """Seconds spent on a stage over all attempts; its file is the heartbeat that `status` reads."""

    path: Path
    before: float = 0.0
    _start: float = field(default_factory=time.monotonic)
    _written: float = 0.0

    @classmethod
    def resume(cls, path: Path) -> Clock:
        try:
            return cls(path, float(json.loads(path.read_text())["seconds"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self._start

    def beat(self, done: int = 0, total: int | None = None, figures: Mapping[str, Any] | None = None) -> None:
        now = time.monotonic()
        if now - self._written < HEARTBEAT_SECONDS:
            return
        self._written = now
        content = {
            "pid": os.getpid(),
            "seconds": self.seconds,
            "done": done,
            "total": total,
            "figures": figures or {},
        }
        write_atomic(self.path, json.dumps(content), durable=False)
