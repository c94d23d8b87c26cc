"""Which traces are meant: the filters that `distill traces list` and `export` and the export stage share.

All of them are conditions on the view `overview`; the stage's rows are a collection in `members`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import catalog
from distill.types import Finish, Outcome
from pipeline import manifest as manifests
from pipeline.config import nearest
from pipeline.errors import InputError
from pipeline.manifest import Manifest

OF_COLLECTION = (
    "(trace_key IN (SELECT row_key FROM members WHERE collection = $collection AND label <> 'rejected') OR "
    "trace_key IN (SELECT v.trace_key FROM verdicts v JOIN members m ON m.row_key = v.verdict_key "
    "WHERE m.collection = $collection))"
)


@dataclass(frozen=True, slots=True)
class Choice:
    """Conditions that all hold; None does not ask. ``collection`` is the digest of a stage's output: the traces
    it made or judged, of a selection those that were kept. ``where`` is SQL over `overview`."""

    collection: str | None = None
    outcome: str | None = None
    source: str | None = None
    model: str | None = None
    finish: str | None = None
    problem: str | None = None
    where: str | None = None
    rollouts: bool = False

    def __post_init__(self) -> None:
        for name, known in (("outcome", Outcome), ("finish", Finish)):
            value = getattr(self, name)
            if value is not None and value not in list(known):
                raise InputError(f"--{name} {value}: expected {', '.join(known)}")

    def condition(self) -> tuple[str, dict[str, Any]]:
        """SQL over `overview`, and its parameters."""
        asked = {
            "collection": OF_COLLECTION,
            "outcome": "outcome = $outcome",
            "source": "source = $source",
            "model": "contains(model, $model)",
            "finish": "finish = $finish",
            "problem": "starts_with(problem_id, $problem)",
        }
        parts = [sql for name, sql in asked.items() if getattr(self, name) is not None]
        parts += [f"({self.where})"] if self.where else []
        parts += [] if self.rollouts else ["NOT rollout"]
        parameters = {name: getattr(self, name) for name in asked if getattr(self, name) is not None}
        return " AND ".join(parts) or "true", parameters

    def words(self) -> list[str]:
        """The conditions for a person."""
        asked = ("outcome", "source", "model", "finish", "problem", "where")
        return [f"{name}: {getattr(self, name)}" for name in asked if getattr(self, name) is not None]


def of_stage(workspace: Path, name: str) -> Manifest:
    """The record at which a stage stands whose output is traces, verdicts or a selection, by its name in the YAML;
    the newest where that is not known."""
    found = [m for m in recorded(workspace) if _makes(m.identity.kind) in ("traces", "verdicts", "selection")]
    if (standing := manifests.current(workspace, name)) in found:
        return standing
    named = [m for m in found if m.stage == name]
    if not named:
        raise InputError(
            f"{workspace}: no stage {name!r} has made traces, verdicts or a selection there"
            f"{nearest(name, sorted({m.stage for m in found}))}"
        )
    return max(named, key=lambda m: m.finished)


def _makes(kind: str) -> str | None:
    """What stages of a kind produce; None for one that this distill does not know."""
    return catalog.stage(kind).produces if kind in catalog.names("stages") else None


def recorded(workspace: Path) -> Iterator[Manifest]:
    """The record of every complete stage of a workspace."""
    for path in sorted(manifests.directory(workspace).glob("*/*.json")):
        if found := manifests.read(path):
            yield found


def lineage(workspace: Path, collection: str | None) -> list[Manifest]:
    """The records of the stages that a collection comes from, the first of them first; of all stages for none.

    Several stages may have the same output: a curation that took nothing out has that of the stage before it. Of
    these the newest is meant that was there when the stage was made which took it.
    """
    newest_first = sorted(recorded(workspace), key=lambda m: m.finished, reverse=True)
    of_digest: dict[str, list[Manifest]] = {}
    for found in newest_first:
        of_digest.setdefault(found.digest, []).append(found)
    if collection is None:
        return [found[0] for found in of_digest.values()][::-1]
    chain: dict[str, Manifest] = {}

    def follow(digest: str, after: tuple[Manifest, ...]) -> None:
        candidates = [m for m in of_digest.get(digest, ()) if m not in after]
        by_then = (m for m in candidates if not after or m.finished <= after[-1].finished)
        if found := next(by_then, candidates[0] if candidates else None):
            for upstream in found.identity.inputs.values():
                follow(upstream, (*after, found))
            chain.setdefault(found.fingerprint, found)

    follow(collection, ())
    return list(chain.values())
