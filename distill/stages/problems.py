"""problems: gather what is to be answered, from problem families and files, into train and held-out sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from distill import catalog, tables
from distill.stages.common import VerifierName, members_present, store_of
from distill.store.records import problem_row, record_members
from distill.types import Problem
from pipeline.errors import InputError
from pipeline.stage import Context, File, Forecast, Operational, Output, Settings, Stage

Count = Annotated[int, Field(ge=0)]


class FamilySource(Settings):
    """``train`` and ``heldout`` problems of a procedural family."""

    family: Annotated[str, AfterValidator(partial(catalog.check, "families"))]
    train: Count = 0
    heldout: Count = 0


class FileSource(Settings):
    """Problems in a JSONL, JSON, CSV or Parquet file (also gzipped), one a row.

    ``prompt`` and ``reference`` name columns; ``reference_pattern`` is a regular expression whose
    first group, at its last match, is the reference (``#### (.+)`` for GSM8K). A mapping as reference
    gathers several columns: ``{entry_point: entry_point, test: test}``, the tests of `code`.
    """

    file: Annotated[str, File()]
    prompt: str
    reference: str | dict[str, str]
    reference_pattern: str | None = None
    verifier: VerifierName = "math"
    split: Literal["train", "heldout"] = "train"
    instruction: str = ""
    """Text put after every prompt, such as how to write the answer."""
    difficulty: str | None = None
    licence: str = "unknown"
    source: str | None = None
    take: Annotated[int | None, Field(ge=1)] = None
    on_bad_row: Annotated[Literal["stop", "skip"], Operational()] = "stop"


Source = Annotated[
    Annotated[FamilySource, Tag("family")] | Annotated[FileSource, Tag("file")],
    Discriminator(lambda value: "family" if isinstance(value, dict) and "family" in value else "file"),
]


class ProblemsSettings(Settings):
    sources: Annotated[list[Source], Field(min_length=1)]
    seed: int = 0
    limit: Annotated[int | None, Field(ge=1)] = None
    """At most so many of each source and split."""


def run(context: Context, settings: ProblemsSettings) -> Output:
    store = store_of(context)
    rows: dict[str, dict[str, Any]] = {}
    members: list[tuple[str, str]] = []
    held_out: set[str] = set()
    repeats = 0
    for problem in _all(settings, context):
        row = problem_row(problem)
        key, asked = row["problem_key"], row["prompt_key"]
        if key in rows or (problem.split == "train" and asked in held_out):
            repeats += 1
            continue
        if problem.split == "heldout":
            held_out.add(asked)
        rows[key] = row
        members.append((problem.split, key))
    store.append("problems", list(rows.values()))
    counts = Counter(split for split, _ in members)
    context.progress(len(members), len(members))
    digest = record_members(store, members)
    return Output(digest, {"members": len(members), "repeats": repeats, **counts})


def _all(settings: ProblemsSettings, context: Context) -> Iterator[Problem]:
    """Held-out problems first: what is asked on both sides stays held out and is not trained on."""
    for split in ("heldout", "train"):
        for source in settings.sources:
            if isinstance(source, FamilySource):
                yield from _family(source, settings, split)
            elif source.split == split:
                yield from _file(source, settings.limit, context)


def _family(source: FamilySource, settings: ProblemsSettings, split: str) -> Iterator[Problem]:
    """Distinct problems: a repeat of an earlier draw is passed over, so the count is what was asked."""
    family = catalog.resolve("families", source.family)()
    wanted = source.train if split == "train" else source.heldout
    wanted = min(wanted, settings.limit or wanted)
    seen: set[str] = set()
    index = 0
    while len(seen) < wanted:
        problem = family.generate(settings.seed, index, split)
        index += 1
        if problem.prompt not in seen:
            seen.add(problem.prompt)
            yield problem
        elif index > 20 * wanted + 1000:
            raise InputError(f"family {source.family}: has too few different problems for {wanted} ({split})")


def _file(source: FileSource, limit: int | None, context: Context) -> Iterator[Problem]:
    mapping = tables.ProblemColumns(
        source.prompt, source.reference, source.reference_pattern, source.difficulty, source.instruction
    )
    take = min(n for n in (source.take, limit, 10**12) if n is not None)
    made = 0
    for row in tables.read(source.file):
        if made >= take:
            break
        try:
            yield mapping.problem(row, source.verifier, source.source or row.stem, source.split, source.licence)
            made += 1
        except InputError as error:
            if source.on_bad_row == "stop":
                raise
            context.note(f"skipped {error}")


def forecast(context: Context, settings: ProblemsSettings, _: Mapping[str, Mapping[str, Any]]) -> Forecast:
    counts: Counter[str] = Counter()
    for source in settings.sources:
        if isinstance(source, FamilySource):
            counts["train"] += min(source.train, settings.limit or source.train)
            counts["heldout"] += min(source.heldout, settings.limit or source.heldout)
        else:
            found = source.take or tables.count(source.file)
            counts[source.split] += min(found, settings.limit or found)
    return Forecast("problems", counts.total(), figures=dict(counts))


STAGE = Stage(
    kind="problems",
    about="gather problems from families and files, with train and held-out sets",
    settings=ProblemsSettings,
    produces="problems",
    run=run,
    forecast=forecast,
    check=members_present,
)
