"""Contamination of a score: find the evaluation problems that overlap with the student's training data.

The training data is read from the manifests: the selections and rollouts of every stage that made the student, back to
the model that training started from. What that model saw before is not recorded here, so a model that no stage made is
reported as unknown, not as clean. Prompts are compared by word n-grams (`distill.curation.contamination`), without the
frame that the training prompts of a source share. Responses are not compared. The evidence goes to the table
`exposure`.
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
"""The problems of the rollouts of ``$runs`` and of the kept traces of ``$selections``."""


ROLLED = "SELECT DISTINCT run FROM rollouts WHERE list_contains($runs, run)"


@dataclass(frozen=True, slots=True)
class Exposed:
    """An evaluation problem, and the training problem that contains the largest share of it."""

    problem: str
    taught: str
    share: float
    ngram: str


@dataclass(frozen=True, slots=True)
class Exposure:
    """``stages`` trained the student on ``taught`` problems, the last stage first. ``unrecorded`` are its stages that
    leave no record of what they read, such as pre-training."""

    stages: tuple[str, ...]
    unrecorded: tuple[str, ...]
    taught: int
    found: Mapping[str, Exposed]


def of_student(
    store: Store, workspace: Path, made: Manifest, tasks: Sequence[tuple[str, Problem]], ngram: int, share: float
) -> Exposure:
    """What the student that ``made`` records has seen of ``tasks``.

    A task counts as seen if a training problem contains at least ``share`` of its n-grams; at 0, any of them.
    """
    chain = list(lineage(workspace, made))
    asked = {
        "runs": [stage.fingerprint for stage in chain],
        "selections": [digest for stage in chain for name, digest in stage.identity.inputs.items() if name == "data"],
    }
    rows = store.rows(TAUGHT, asked)
    rolled = {row["run"] for row in store.rows(ROLLED, {"runs": asked["runs"]})}
    known = [stage for stage in chain if "data" in stage.identity.inputs or stage.fingerprint in rolled]
    names, others = (tuple(s.stage for s in chain if (s in known) is wanted) for wanted in (True, False))
    return Exposure(names, others, len(rows), overlaps(rows, tasks, ngram, share))


def lineage(workspace: Path, made: Manifest) -> Iterator[Manifest]:
    """The stages that trained a student, the last one first. Each started from the student of the one that follows."""
    by_digest = {record.digest: record for record in sorted(recorded(workspace), key=lambda m: m.finished)}
    stage: Manifest | None = made
    while stage is not None:
        yield stage
        before = stage.identity.inputs.get("student")
        stage = by_digest.get(before) if before else None


def overlaps(
    taught: Sequence[Mapping[str, Any]], tasks: Sequence[tuple[str, Problem]], ngram: int, share: float
) -> dict[str, Exposed]:
    """By task, the problem among ``taught`` (problem_key, source, prompt) that contains the largest share of it."""
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
    """The rows for the table `exposure`."""
    return [
        {
            "run": run, "label": label, "problem_key": one.problem, "taught_key": one.taught, "share": one.share,
            "ngram": one.ngram,
        }
        for one in exposure.found.values()
    ]  # fmt: skip
