"""problems: gather problems from sources of any kind into a training and a held-out set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from distill import keys
from distill.sources import problems as sources
from distill.sources.problems import Source
from distill.stages.common import members_present, store_of
from distill.store.records import problem_row, record_members
from distill.types import Problem
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Output, Settings, Stage


class ProblemsSettings(Settings):
    sources: Annotated[list[Source], Field(min_length=1)]
    seed: int = 0
    limit: Annotated[int | None, Field(ge=1)] = None
    """Maximum number of problems per source and split."""


def run(context: Context, settings: ProblemsSettings) -> Output:
    store = store_of(context)
    rows: dict[str, dict[str, Any]] = {}
    members: list[tuple[str, str]] = []
    seen: set[str] = set()
    held_out: set[str] = set()
    repeats = 0
    for problem in _all(settings, context):
        row = problem_row(problem)
        key, asked, checked = row["problem_key"], row["prompt_key"], content_hash(keys.checked(problem))
        if checked in seen or (problem.split == "train" and asked in held_out):
            repeats += 1
            continue
        seen.add(checked)
        if problem.split == "heldout":
            held_out.add(asked)
        rows[key] = row
        members.append((problem.split, key))
    counts = Counter(split for split, _ in members)
    if not counts["train"] and repeats:
        raise InputError(f"stage {context.name}: every training problem is also among the held-out ones")
    if not members:
        raise InputError(f"stage {context.name}: its sources hold no problem")
    store.append("problems", list(rows.values()))
    context.progress(len(members), len(members))
    digest = record_members(store, members)
    verifiers = sorted({row["verifier"] for row in rows.values()})
    names = sorted({row["source"] for row in rows.values() if row["split"] == "train"})
    figures = {"members": len(members), "repeats": repeats, "verifiers": verifiers, "train_sources": names}
    return Output(digest, figures | counts)


def _all(settings: ProblemsSettings, context: Context) -> Iterator[Problem]:
    for split in sources.SPLITS:
        for source in settings.sources:
            yield from sources.problems_of(source, split, settings.seed, settings.limit, context.note)


def forecast(context: Context, settings: ProblemsSettings, _: Mapping[str, Mapping[str, Any]]) -> Forecast:
    counts = sources.counts(settings.sources, settings.limit)
    if counts is None:
        return Forecast("problems")
    names = sources.train_names(settings.sources)
    known = {} if names is None else {"train_sources": names}
    return Forecast("problems", counts.total(), figures={**counts, **known})


def dependencies(settings: ProblemsSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> dict[str, str]:
    return sources.dependencies(settings.sources, hashes)


STAGE = Stage(
    kind="problems",
    about="gather problems from families, reasoning-gym, files and Hugging Face data sets",
    settings=ProblemsSettings,
    produces="problems",
    run=run,
    version=2,
    forecast=forecast,
    dependencies=dependencies,
    check=members_present,
    refuse=lambda settings, _: sources.unreadable(settings.sources),
)
