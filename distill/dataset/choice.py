"""Which traces are meant: the filters that `distill traces list` and `export` and the export stage share.

All of them are conditions on the view `overview`; the stage's rows are a collection in `members`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        WHERE m.collection = $verdicts QUALIFY row_number() OVER (PARTITION BY v.trace_key ORDER BY m.position) = 1)
    SELECT o.* REPLACE (
        own.problem_key AS problem_key, own.problem_id AS problem_id, own.source AS source,
        own.difficulty AS difficulty, own.outcome AS outcome, own.score AS score, own.verifier AS verifier,
        own.version AS version)
    FROM overview o JOIN own USING (trace_key))"""
"""`overview`, with the verdicts of one stage in place of the newest."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Conditions that all hold; None does not ask. ``collection`` is the digest of a stage's output: the traces
    it made or judged, of a selection those that were kept. ``verdicts`` is that of the stage whose verdicts count;
    by default the newest of each trace. ``where`` is SQL over `overview`."""

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
    """Fingerprint of the stage that made the collection: a selection's reasons are its."""

    def __post_init__(self) -> None:
        for name, known in (("outcome", Outcome), ("finish", Finish)):
            value = getattr(self, name)
            if value is not None and value not in list(known):
                raise InputError(f"--{name} {value}: expected {', '.join(known)}")

    @classmethod
    def of(cls, record: Manifest, **conditions: Any) -> Choice:
        """Of a stage's output, with the verdicts that it holds or, of a selection, was chosen by."""
        judged = record.digest if _makes(record.identity.kind) == "verdicts" else record.identity.inputs.get("verdicts")
        return cls(record.digest, verdicts=judged, run=record.fingerprint, **conditions)

    def condition(self) -> tuple[str, str, dict[str, Any]]:
        """What to choose from, in SQL, with the condition on it and the parameters of both."""
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
        """The conditions for a person."""
        asked = ("outcome", "source", "model", "finish", "problem", "where")
        return [f"{name}: {getattr(self, name)}" for name in asked if getattr(self, name) is not None]


def chosen_by(workspace: Path, selection: str | None, asked: Mapping[str, Any]) -> Choice:
    """The choice that a command's options make; ``selection`` is a stage's name."""
    return Choice.of(of_stage(workspace, selection), **asked) if selection else Choice(**asked)


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

    Several stages may have the same output: a curation that took nothing out has that of the stage before it, and of
    itself by other settings. Of these that one is meant at which its stage stands, else the newest; and one that was
    there when the stage was made which took it.
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
