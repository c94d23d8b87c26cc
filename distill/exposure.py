"""Contamination of a score: which evaluation problems overlap with what the student was trained on.

What it was trained on is read from the record: the selections and rollouts of the stages that made it, back to the
model that was given. What that one has seen before nobody here knows, and a model that no stage made is said to be
unknown, not clean. Compared are prompts, by runs of words (`distill.curation.contamination`), without the frame that
the training prompts of a source share; responses are not looked at. The evidence is the table `exposure`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.dataset.choice import recorded
from distill.store import Store
from distill.store.records import Row
from distill.types import Problem
from pipeline.manifest import Manifest

BATCH = 5000
TAUGHT = """
    WITH seen AS (
        SELECT DISTINCT problem_key FROM rollouts WHERE list_contains($runs, run)
        UNION SELECT min(p.problem_key) FROM members m JOIN traces t ON m.row_key = t.trace_key
            JOIN problems p USING (prompt_key)
            WHERE list_contains($selections, m.collection) AND m.label = 'kept' GROUP BY p.prompt_key)
    SELECT problem_key, source, prompt FROM problems SEMI JOIN seen USING (problem_key) ORDER BY problem_key
"""
"""The problems of the rollouts of some runs, and of the kept traces of some selections."""


ROLLED = "SELECT DISTINCT run FROM rollouts WHERE list_contains($runs, run)"


@dataclass(frozen=True, slots=True)
class Exposed:
    """An evaluation problem, and the training problem that has most of it."""

    problem: str
    taught: str
    share: float
    ngram: str


@dataclass(frozen=True, slots=True)
class Exposure:
    """``stages`` trained the student, the last of them first, on ``taught`` problems. ``unrecorded`` are those of its
    stages that leave no record of what they read, as a pre-training does."""

    stages: tuple[str, ...]
    unrecorded: tuple[str, ...]
    taught: int
    found: Mapping[str, Exposed]


def of_student(
    store: Store, workspace: Path, made: Manifest, tasks: Sequence[tuple[str, Problem]], ngram: int, share: float
) -> Exposure:
    """What the student recorded by ``made`` saw of ``tasks``: from ``share`` of a task's runs of words on, any at 0."""
    chain = list(schooling(workspace, made))
    asked = {
        "runs": [stage.fingerprint for stage in chain],
        "selections": [digest for stage in chain for name, digest in stage.identity.inputs.items() if name == "data"],
    }
    rows = store.rows(TAUGHT, asked)
    rolled = {row["run"] for row in store.rows(ROLLED, {"runs": asked["runs"]})}
    known = [stage for stage in chain if "data" in stage.identity.inputs or stage.fingerprint in rolled]
    names, others = (tuple(s.stage for s in chain if (s in known) is told) for told in (True, False))
    return Exposure(names, others, len(rows), overlaps(rows, tasks, ngram, share))


def schooling(workspace: Path, made: Manifest) -> Iterator[Manifest]:
    """The stages that trained a student, the last one first: each started from the student of the next."""
    by_digest = {record.digest: record for record in sorted(recorded(workspace), key=lambda m: m.finished)}
    stage: Manifest | None = made
    while stage is not None:
        yield stage
        before = stage.identity.inputs.get("student")
        stage = by_digest.get(before) if before else None


def overlaps(
    taught: Sequence[Mapping[str, Any]], tasks: Sequence[tuple[str, Problem]], ngram: int, share: float
) -> dict[str, Exposed]:
    """By task, the problem among ``taught`` (problem_key, source, prompt) that has most of it."""
    from distill.curation.contamination import CANDIDATES, Evaluations, Item
    from distill.curation.frame import Frames

    frames = Frames()
    frames.see((row["source"], row["prompt"]) for row in taught)
    cut = frames.cutter()
    evaluation = Evaluations([Item("", key, "", cut(problem.prompt)) for key, problem in tasks], ngram)
    found: dict[str, Exposed] = {}
    for at in range(0, len(taught), BATCH):
        rows = taught[at : at + BATCH]
        for row, hits in zip(rows, evaluation.find([cut(row["prompt"]) for row in rows], CANDIDATES), strict=True):
            for hit in hits:
                known = found.get(hit.item.name)
                if hit.share >= share and (known is None or hit.share > known.share):
                    found[hit.item.name] = Exposed(hit.item.name, row["problem_key"], hit.share, hit.ngram)
    return found


def evidence(run: str, label: str, exposure: Exposure) -> list[Row]:
    """The rows of `exposure`."""
    return [
        {
            "run": run, "label": label, "problem_key": one.problem, "taught_key": one.taught, "share": one.share,
            "ngram": one.ngram,
        }
        for one in exposure.found.values()
    ]  # fmt: skip
