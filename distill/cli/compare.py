"""``distill compare``: compare two evaluated models on the same problems, overall, by source and by difficulty.

A model is named by its label in the pipeline's evaluate stage, or by ``stage/label`` for another stage. Scores of
different protocols are not compared; the error message says what differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill import verification
from distill.cli.open import aside, load, workspace_of
from distill.cli.table import render
from distill.evaluation import comparison, scoring
from distill.report.words import chance, percent, points
from distill.stages.evaluate import PROTOCOL
from distill.stages.measuring import GREEDY
from distill.store import Store
from distill.store.records import Row
from pipeline import manifest as manifests
from pipeline.config import PipelineSpec
from pipeline.errors import InputError
from pipeline.fingerprint import differences
from pipeline.manifest import Manifest
from pipeline.mistakes import nearest
from pipeline.plan import plan
from pipeline.workspace import Workspace

COLUMNS = frozenset({"problems of", "n", "points", "95% interval", "better", "worse", "p"})


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in an evaluation."""

    label: str
    evaluation: Manifest

    @property
    def name(self) -> str:
        return f"{self.evaluation.stage}/{self.label}"


def compare(
    before: str, after: str, pipeline: Path, workspace: Path | None, overrides: Sequence[str], limit: int | None,
    stage: str | None, greedy: bool, as_json: bool,
) -> None:  # fmt: skip
    spec = load(pipeline, overrides, limit, workspace)
    space = workspace_of(spec)
    named = [_named(name, spec, stage) for name in (before, after)]
    asked = bool(overrides) or limit is not None
    records = {chosen: _scores(spec, space, chosen, asked) for chosen in dict.fromkeys(chosen for chosen, _ in named)}
    pair = [_subject(label, records[chosen]) for chosen, label in named]
    if pair[0] == pair[1]:
        raise InputError(f"{pair[0].name} would be compared with itself; name two models")
    _check_protocol(*pair)
    store = Store(space.path)
    rows = [_rows(store, subject, greedy) for subject in pair]
    found = {
        "before": pair[0].name,
        "after": pair[1].name,
        "protocol": pair[0].evaluation.figures["protocol"],
        "samples": "greedy" if greedy else pair[0].evaluation.identity.settings["samples"],
        "of": [{"of": key, **_line(*parts)} for key, parts in _parts(*rows).items()],
    }
    print(json.dumps(found) if as_json else _words(found))


def _named(name: str, spec: PipelineSpec, stage: str | None) -> tuple[str, str]:
    """Resolve a model's name to an evaluate stage and a label in it."""
    known = [s.name for s in spec.stages.values() if s.stage.produces == "evaluation"]
    label = name
    head, slash, tail = name.partition("/")
    if slash and head in known:
        stage, label = head, tail
    if not known:
        raise InputError("the pipeline has no evaluate stage, so there are no scores to compare")
    chosen = stage or known[-1]
    if chosen not in known:
        raise InputError(f"--stage {chosen}: there is no evaluate stage of that name{nearest(chosen, known)}")
    return chosen, label


def _scores(spec: PipelineSpec, space: Workspace, stage: str, asked: bool) -> Manifest:
    """The scores for the current settings. If there are none, use those of the stage's last run with a note, or raise
    `InputError` if the command line ``asked`` for these settings."""
    try:
        now = next(item for item in plan(spec, space, [stage]) if item.spec.name == stage)
        found, why = now.manifest, ", ".join(now.reasons)
    except InputError as error:  # a file is gone since, but the scores of the last run are recorded
        found, why = None, str(error)
    if found is not None:
        return found
    last = manifests.current(space.path, stage)
    if last is None or "pairs" not in last.figures or asked:
        settings = " with these settings" if asked else ""
        raise InputError(
            f"stage {stage} has no scores yet{settings}; run it: distill run {stage} --pipeline {spec.file}"
        )
    aside(f"{stage} has not been run with its current settings ({why}); these are the scores of its last run")
    return replace(last, stage=stage)  # it may have been made by a stage of another name


def _subject(label: str, record: Manifest) -> Subject:
    if label not in record.figures["subjects"]:
        raise InputError(
            f"stage {record.stage} evaluated no model {label!r}{nearest(label, record.figures['subjects'])}"
        )
    return Subject(label, record)


def _check_protocol(one: Subject, other: Subject) -> None:
    first, second = one.evaluation, other.evaluation
    if first.figures["protocol"] == second.figures["protocol"]:
        return
    old, new = ({name: record.identity.settings.get(name) for name in PROTOCOL} for record in (first, second))
    changed = differences(old, new) or ["the problems, or a verifier's version"]
    raise InputError(
        f"{one.name} and {other.name} were evaluated with different protocols ({', '.join(changed)}), so their scores "
        "cannot be compared; evaluate both in one stage"
    )


def _rows(store: Store, subject: Subject, greedy: bool) -> list[Row]:
    label = f"{subject.label}/{GREEDY}" if greedy else subject.label
    members = store.rows(
        "SELECT row_key FROM members WHERE collection = ? AND label = ? ORDER BY position",
        [subject.evaluation.digest, label],
    )
    if not members and not subject.evaluation.identity.settings["sampling"]["temperature"]:
        raise InputError(f"{subject.name}: its samples, at temperature 0, are greedy already; leave out --greedy")
    if not members:
        raise InputError(
            f"{subject.name}: no greedy answers were sampled; set greedy: true in {subject.evaluation.stage}"
        )
    return verification.scores(store, [row["row_key"] for row in members], answers=True)


def _parts(before: Sequence[Row], after: Sequence[Row]) -> dict[str, tuple[Sequence[Row], Sequence[Row]]]:
    found = {"all": (before, after)}
    for name, parts in scoring.groups(before).items():
        others = scoring.groups(after)[name]
        found |= {key: (parts[key], others[key]) for key in sorted(parts) if key in others}
    return found


def _line(before: Sequence[Row], after: Sequence[Row]) -> dict[str, Any]:
    pair = scoring.by_problem(before), scoring.by_problem(after)
    return {**dict(zip(("before", "after"), comparison.means(*pair), strict=True)), **comparison.between(*pair)}


def _words(found: Mapping[str, Any]) -> str:
    """A table that fits into 80 columns. The stage is part of a model's name only if there are two, or if a column is
    called like the model."""
    (of, before), (other, after) = (found[which].split("/", 1) for which in ("before", "after"))
    if of != other or not COLUMNS.isdisjoint((before, after)):
        before, after = found["before"], found["after"]
    lines = [
        {
            "problems of": row["of"],
            "n": row["problems"],
            before: percent(row["before"]),
            after: percent(row["after"]),
            "points": points(row["difference"]),
            "95% interval": " to ".join(map(points, row["ci95"])),
            "better": row["better"],
            "worse": row["worse"],
            "p": chance(row["p"]),
        }
        for row in found["of"]
    ]
    test = "McNemar's exact test" if found["samples"] in (1, "greedy") else "the exact sign test over problems"
    about = f"protocol {found['protocol']}{f' of {of}' if of == other else ''}; better, worse: problems"
    return f"{render(lines)}\n\n{about}\np: {test}, not adjusted for several rows"
