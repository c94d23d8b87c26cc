"""Choosing traces: the filters that `distill traces list`, `distill traces export` and the export stage share.

All of them are conditions on the view `overview`; a stage's rows are a collection in `members`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import catalog
from distill.types import Finish, Outcome
from pipeline import manifest as manifests
from pipeline.errors import InputError
from pipeline.manifest import Manifest
from pipeline.mistakes import nearest

OF_COLLECTION = (
    "(trace_key IN (SELECT row_key FROM members WHERE collection = $collection AND label <> 'rejected') OR "
    "trace_key IN (SELECT v.trace_key FROM verdicts v JOIN members m ON m.row_key = v.verdict_key "
    "WHERE m.collection = $collection))"
)
OF_MODEL = "(contains(model, $model) OR model IN (SELECT m.model FROM models m WHERE contains(m.name, $model)))"


AS_JUDGED_THERE = """(
    WITH own AS (
        SELECT v.trace_key, v.problem_key, v.outcome, v.score, v.verifier, v.version,
            p.problem_id, p.source, p.difficulty
        FROM members m JOIN verdicts v ON v.verdict_key = m.row_key JOIN problems p USING (problem_key)
        WHERE m.collection = $verdicts QUALIFY row_number() OVER (
            PARTITION BY v.trace_key ORDER BY v.outcome <> 'correct', m.position) = 1)
    SELECT o.* REPLACE (
        own.problem_key AS problem_key, own.problem_id AS problem_id, own.source AS source,
        own.difficulty AS difficulty, own.outcome AS outcome, own.score AS score, own.verifier AS verifier,
        own.version AS version)
    FROM overview o JOIN own USING (trace_key))"""
"""`overview`, with the verdicts of one stage in place of the newest. If it judged a trace by several references, the
correct verdict counts, as in training (`distill.store.records.KEPT`)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Conditions that must all hold; None means no condition. ``collection`` is the digest of a stage's output: the
    traces that it made or judged, or those that a selection kept. ``verdicts`` is the digest of the stage whose
    verdicts count; by default, the newest verdict of each trace does. ``where`` is SQL over `overview`."""

    collection: str | None = None
    outcome: str | None = None
    source: str | None = None
    model: str | None = None
    finish: str | None = None
    problem: str | None = None
    where: str | None = None
    rollouts: bool = False
    verdicts: str | None = None
    run: str | None = None
    """Fingerprint of the stage that made the collection; a selection's reasons are stored under it."""

    def __post_init__(self) -> None:
        for name, known in (("outcome", Outcome), ("finish", Finish)):
            value = getattr(self, name)
            if value is not None and value not in list(known):
                raise InputError(f"--{name} {value}: expected {', '.join(known)}")

    @classmethod
    def of(cls, record: Manifest, **conditions: Any) -> Choice:
        """The traces of a stage's output, with the verdicts that it holds or that a selection was made by."""
        judged = record.digest if _makes(record.identity.kind) == "verdicts" else record.identity.inputs.get("verdicts")
        return cls(record.digest, verdicts=judged, run=record.fingerprint, **conditions)

    def condition(self) -> tuple[str, str, dict[str, Any]]:
        """(what to choose from, the condition, the parameters of both), the first two in SQL."""
        asked = {
            "collection": OF_COLLECTION,
            "outcome": "outcome = $outcome",
            "source": "source = $source",
            "model": OF_MODEL,
            "finish": "finish = $finish",
            "problem": "starts_with(problem_id, $problem)",
        }
        parts = [sql for name, sql in asked.items() if getattr(self, name) is not None]
        parts += [f"({self.where})"] if self.where else []
        parts += [] if self.rollouts else ["NOT rollout"]
        parameters = {name: getattr(self, name) for name in asked if getattr(self, name) is not None}
        if self.verdicts is None:
            return "overview", " AND ".join(parts) or "true", parameters
        return AS_JUDGED_THERE, " AND ".join(parts) or "true", {**parameters, "verdicts": self.verdicts}

    def words(self) -> list[str]:
        """The conditions, for display."""
        asked = ("outcome", "source", "model", "finish", "problem", "where")
        return [f"{name}: {getattr(self, name)}" for name in asked if getattr(self, name) is not None]


def chosen_by(workspace: Path, selection: str | None, asked: Mapping[str, Any]) -> Choice:
    """The choice that a command's options ask for; ``selection`` is a stage's name."""
    return Choice.of(of_stage(workspace, selection), **asked) if selection else Choice(**asked)


def of_stage(workspace: Path, name: str) -> Manifest:
    """The current manifest of a stage with this name, whose output is traces, verdicts or a selection; if the current
    one is not known, the newest."""
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
    """What stages of a kind produce; None for a kind that this distill does not know."""
    return catalog.stage(kind).produces if kind in catalog.names("stages") else None


def problem_sets(workspace: Path, chain: Collection[Manifest]) -> list[str]:
    """The outputs of the stages that make problems: those in ``chain``, and the current ones of the workspace, as a
    pipeline may hold out problems in a stage of its own. Empty if none is known."""
    found = [m for m in recorded(workspace) if _makes(m.identity.kind) == "problems"]
    return sorted({m.digest for m in found if m in chain or manifests.current(workspace, m.stage) == m})


def recorded(workspace: Path) -> Iterator[Manifest]:
    """The manifests of all complete stages of a workspace."""
    for path in sorted(manifests.directory(workspace).glob("*/*.json")):
        if found := manifests.read(path):
            yield found


def lineage(workspace: Path, collection: str | None) -> list[Manifest]:
    """The manifests of the stages that a collection comes from, in order; of all stages if ``collection`` is None.

    Several manifests may have the same output: a curation that removed nothing has that of the stage before it, and
    that of its own runs with other settings. The current one of its stage is preferred, then the newest; but first
    come those that existed when the stage that used the output was run.
    """

    def rank(made: Manifest) -> tuple[bool, str]:
        return manifests.current(workspace, made.stage) == made, made.finished

    of_digest: dict[str, list[Manifest]] = {}
    for found in sorted(recorded(workspace), key=rank, reverse=True):
        of_digest.setdefault(found.digest, []).append(found)
    if collection is None:
        return sorted((found[0] for found in of_digest.values()), key=lambda made: made.finished)
    chain: dict[str, Manifest] = {}

    def follow(digest: str, after: tuple[Manifest, ...]) -> None:
        passed = {m.stage for m in after}
        candidates = [m for m in of_digest.get(digest, ()) if m.stage not in passed]
        by_then = (m for m in candidates if not after or m.finished <= after[-1].finished)
        if found := next(by_then, candidates[0] if candidates else None):
            for upstream in found.identity.inputs.values():
                follow(upstream, (*after, found))
            chain.setdefault(found.fingerprint, found)

    follow(collection, ())
    return list(chain.values())
