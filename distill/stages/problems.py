"""problems: gather what is to be answered, from families, reasoning-gym and files, into train and held-out sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from distill import catalog, keys, puzzles, tables
from distill.families.base import code_of
from distill.stages.common import VerifierName, members_present, store_of
from distill.store.records import problem_row, record_members
from distill.types import Problem
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Context, File, Forecast, Output, Settings, Stage

Count = Annotated[int, Field(ge=0)]


class FamilySource(Settings):
    """``train`` and ``heldout`` problems of a procedural family."""

    family: Annotated[str, AfterValidator(partial(catalog.check, "families"))]
    train: Count = 0
    heldout: Count = 0


class PuzzleSource(Settings):
    """``train`` and ``heldout`` puzzles of a data set of reasoning-gym (the extra of that name)."""

    reasoning_gym: str
    """A data set of the library, such as `basic_arithmetic`."""
    train: Count = 0
    heldout: Count = 0
    config: dict[str, Any] = Field(default_factory=dict)
    """The library's own settings of that data set, less seed and size."""
    instruction: str = ""
    """Text put after every prompt, such as how to write the answer."""


class FileSource(Settings):
    """Problems in a JSONL, JSON, CSV or Parquet file (also gzipped), one a row.

    ``prompt`` and ``reference`` name columns; ``reference_pattern`` is a regular expression whose
    first group, at its last match, is the reference (``#### (.+)`` for GSM8K). A mapping as reference
    gathers several columns: ``{entry_point: entry_point, test: test}``, the tests of `code`.
    """

    file: Annotated[str, File()]
    prompt: str
    reference: str | dict[str, str]
    reference_pattern: tables.Pattern | None = None
    verifier: VerifierName = "math"
    split: Literal["train", "heldout"] = "train"
    instruction: str = ""
    """Text put after every prompt, such as how to write the answer."""
    difficulty: str | None = None
    licence: str = "unknown"
    source: str | None = None
    take: Annotated[int | None, Field(ge=1)] = None
    on_bad_row: Literal["stop", "skip"] = "stop"


TAGS = ("family", "reasoning_gym")


def _tag(value: Any) -> str:
    """Which source is meant, by the key that each has alone."""
    return next((tag for tag in TAGS if isinstance(value, dict) and tag in value), "file")


Source = Annotated[
    Annotated[FamilySource, Tag("family")]
    | Annotated[PuzzleSource, Tag("reasoning_gym")]
    | Annotated[FileSource, Tag("file")],
    Discriminator(_tag),
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
        raise InputError(f"stage {context.name}: every training problem stands among the held-out ones too")
    if not members:
        raise InputError(f"stage {context.name}: its sources hold no problem")
    store.append("problems", list(rows.values()))
    context.progress(len(members), len(members))
    digest = record_members(store, members)
    verifiers = sorted({row["verifier"] for row in rows.values()})
    return Output(digest, {"members": len(members), "repeats": repeats, "verifiers": verifiers, **counts})


def _all(settings: ProblemsSettings, context: Context) -> Iterator[Problem]:
    """Held-out problems first: what is asked on both sides stays held out and is not trained on."""
    for split in ("heldout", "train"):
        for source in settings.sources:
            if isinstance(source, FamilySource):
                yield from _family(source, settings, split)
            elif isinstance(source, PuzzleSource):
                wanted = _wanted(source, settings, split)
                config, seed = source.config, settings.seed
                yield from puzzles.make(source.reasoning_gym, config, seed, split, wanted, source.instruction)
            elif source.split == split:
                yield from _file(source, settings.limit, context)


def _family(source: FamilySource, settings: ProblemsSettings, split: str) -> Iterator[Problem]:
    """Distinct problems: a repeat of an earlier draw is passed over, so the count is what was asked."""
    family = catalog.resolve("families", source.family)()
    wanted = _wanted(source, settings, split)
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


def _wanted(source: FamilySource | PuzzleSource, settings: ProblemsSettings, split: str) -> int:
    wanted = source.train if split == "train" else source.heldout
    return min(wanted, settings.limit or wanted)


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
        if isinstance(source, FamilySource | PuzzleSource):
            counts.update({split: _wanted(source, settings, split) for split in ("train", "heldout")})
        else:
            found = source.take or tables.count(source.file)
            counts[source.split] += min(found, settings.limit or found)
    return Forecast("problems", counts.total(), figures=dict(counts))


def dependencies(settings: ProblemsSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> dict[str, str]:
    """The families' code writes the problems, and reasoning-gym's the puzzles."""
    names = {source.family for source in settings.sources if isinstance(source, FamilySource)}
    found = {f"family {name}": code_of([name], hashes) for name in sorted(names)}
    if any(isinstance(source, PuzzleSource) for source in settings.sources):
        found["reasoning-gym"] = puzzles.library_version()
    return found


STAGE = Stage(
    kind="problems",
    about="gather problems from families, reasoning-gym and files, with train and held-out sets",
    settings=ProblemsSettings,
    produces="problems",
    run=run,
    version=2,
    forecast=forecast,
    dependencies=dependencies,
    check=members_present,
)
