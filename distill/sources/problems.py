"""Sources of problems in YAML: families, reasoning-gym, files, Hugging Face datasets.

Each kind is a settings class, recognised by a key that no other kind has. `problems_of` reads any of them, one problem
at a time. The callers are the problems stage, which gathers the problems, and the curate stage, which compares them
with others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from distill import catalog
from distill.families.base import code_of
from distill.sources import forms, huggingface, puzzles, tables
from distill.sources.columns import Column, Columns, Pattern, ProblemColumns, without
from distill.sources.columns import unreadable as unreadable_row
from distill.stages.common import VerifierName
from distill.types import Problem
from distill.verifiers.extras import installed
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes
from pipeline.stage import File, Settings, later

Count = Annotated[int, Field(ge=0)]
NAMED = 20
"""Skipped rows that are named; more would bury everything else."""
SPLITS = ("heldout", "train")
"""Held-out problems come first: a problem in both splits stays held out and is not trained on."""


class FamilySource(Settings):
    """``train`` and ``heldout`` problems of a procedural family."""

    family: Annotated[str, AfterValidator(partial(catalog.check, "families"))]
    train: Count = 0
    """Number of training problems."""
    heldout: Count = 0
    """Number of held-out problems."""
    steps: Annotated[list[Annotated[int, Field(ge=1)]] | None, Field(min_length=1)] = later()
    """For `calc` and `logic`: the numbers of reasoning steps. Default: 3, 4 and 5."""

    @model_validator(mode="after")
    def _has_steps(self) -> FamilySource:
        if self.steps and "steps" not in signature(catalog.resolve("families", self.family)).parameters:
            raise ValueError(f"steps: the problems of family {self.family} are all of one length; leave it out")
        return self


class PuzzleSource(Settings):
    """``train`` and ``heldout`` puzzles of a reasoning-gym dataset (the extra ``reasoning-gym``)."""

    reasoning_gym: str
    """A reasoning-gym data set, such as `basic_arithmetic`."""
    train: Count = 0
    """Number of training problems."""
    heldout: Count = 0
    """Number of held-out problems."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The data set's own settings, except seed and size."""
    instruction: str = ""
    """Text appended to every prompt, such as how to write the answer."""


class RowSource(Settings):
    """The settings that all sources of rows share: how rows become problems.

    ``prompt`` and ``reference`` name columns, or are Jinja templates over them. ``reference_pattern`` is a regular
    expression whose first group, at its last match, is the reference (``#### (.+)`` for GSM8K). A mapping as reference
    combines several columns, as for the tests of `code`: ``{entry_point: entry_point, test: test}``.
    """

    form: Annotated[forms.ProblemForm | None, Field(exclude=True)] = None
    """A published format, such as `gsm8k`, that fills in the keys you leave out (`distill list forms`)."""
    prompt: Column
    """A column, or a Jinja template over columns: `{{ question }}`."""
    reference: Column | dict[str, Column]
    """The column or template of the right answer; a mapping combines several columns."""
    reference_pattern: Pattern | None = None
    """A regular expression with one group. The reference is the group's last match (`#### (.+)`)."""
    verifier: VerifierName = "math"
    split: Literal["train", "heldout"] = "train"
    """What the problems are used for."""
    instruction: str = ""
    """Text appended to every prompt, such as how to write the answer."""
    difficulty: Column | None = None
    """The column or template of the difficulty, an integer."""
    licence: str = "unknown"
    source: str | None = None
    take: Annotated[int | None, Field(ge=1)] = None
    """Maximum number of problems, the first ones."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """`skip` leaves out rows that cannot be read; `stop` fails at the first."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, data: Any) -> Any:
        return forms.fill("problems", data)

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the rows are, for messages."""

    @abstractmethod
    def rows(self) -> Iterator[tables.Row]: ...

    @abstractmethod
    def count(self) -> int | None:
        """The number of rows; None if that cannot be known before reading them."""


def _no_directory(file: str) -> str:
    if Path(file).is_dir():
        raise ValueError(f"{file}: is a directory; to read a data set in it, use `dataset:` instead of `file:`")
    return file


class FileSource(RowSource):
    """Problems in a JSONL, JSON, CSV or Parquet file (also gzipped), one per row."""

    file: Annotated[str, File(), AfterValidator(_no_directory)]

    @property
    def place(self) -> str:
        return self.file

    def rows(self) -> Iterator[tables.Row]:
        return tables.read(self.file)

    def count(self) -> int | None:
        return tables.count(self.file)


class DatasetSource(RowSource):
    """Problems in a Hugging Face dataset, one per row."""

    dataset: Annotated[str, AfterValidator(huggingface.check_name)]
    """`org/name` on the hub, or a local directory (from `save_to_disk`, or a repository of Parquet or similar
    files)."""
    dataset_split: str = "train"
    """The data set's own split to read. Ours is `split`."""
    config: str | None = None
    """The data set's configuration, such as `main`."""
    revision: str | None = None
    """A branch, tag or commit on the hub. A commit saves asking the hub which version is meant."""

    @property
    def place(self) -> str:
        return self.dataset

    @property
    def data(self) -> huggingface.DataSet:
        return huggingface.DataSet(self.dataset, self.dataset_split, self.config, self.revision)

    def rows(self) -> Iterator[tables.Row]:
        return self.data.rows()

    def count(self) -> int | None:
        return self.data.count()


KEYS = ("family", "reasoning_gym", "dataset")


def _tag(value: Any) -> str:
    """The kind of a source, by the key that only this kind has."""
    found = (key for key in KEYS if (key in value if isinstance(value, dict) else hasattr(value, key)))
    return f"{next(found, 'file')} source"  # no YAML key has this name, so error messages leave it out


Source = Annotated[
    Annotated[FamilySource, Tag("family source")]
    | Annotated[PuzzleSource, Tag("reasoning_gym source")]
    | Annotated[DatasetSource, Tag("dataset source")]
    | Annotated[FileSource, Tag("file source")],
    Discriminator(_tag),
]


def problems_of(
    source: Source, split: str, seed: int, limit: int | None, note: Callable[[str], None]
) -> Iterator[Problem]:
    """Yield the problems of a source for ``split``, at most ``limit``. A bad row is noted and skipped, or raises."""
    if isinstance(source, FamilySource):
        yield from _family(source, split, seed, limit)
    elif isinstance(source, PuzzleSource):
        wanted = _wanted(source, split, limit)
        yield from puzzles.make(source.reasoning_gym, source.config, seed, split, wanted, source.instruction)
    elif source.split == split:
        yield from _rows(source, limit, note)


def _family(source: FamilySource, split: str, seed: int, limit: int | None) -> Iterator[Problem]:
    """Yield distinct problems. Repeats of earlier draws are skipped, so that the count is as asked."""
    made = catalog.resolve("families", source.family)
    family = made(steps=source.steps) if source.steps else made()
    wanted = _wanted(source, split, limit)
    seen: set[str] = set()
    index = 0
    while len(seen) < wanted:
        problem = family.generate(seed, index, split)
        index += 1
        if problem.prompt not in seen:
            seen.add(problem.prompt)
            yield problem
        elif index > 20 * wanted + 1000:
            raise InputError(
                f"family {source.family}: gave fewer than {wanted} different problems in {index:,} draws ({split})"
            )


def _wanted(source: FamilySource | PuzzleSource, split: str, limit: int | None) -> int:
    wanted = source.train if split == "train" else source.heldout
    return min(wanted, limit or wanted)


def _rows(source: RowSource, limit: int | None, note: Callable[[str], None]) -> Iterator[Problem]:
    mapping = ProblemColumns(
        source.prompt, source.reference, source.reference_pattern, source.difficulty, source.instruction
    )
    take = least(source.take, limit)
    made = skipped = 0
    for row in source.rows():
        if made >= take:
            break
        try:
            yield mapping.problem(row, source.verifier, source.source or row.stem, source.split, source.licence)
            made += 1
        except InputError as error:
            if source.on_bad_row == "stop":
                raise
            skipped += 1
            if skipped <= NAMED:
                note(f"skipped {error}")
    if skipped > NAMED:
        note(f"skipped {skipped:,} rows of {source.place} in all; the first {NAMED} are named")
    if not made:  # beside other sources nobody would notice
        raise InputError(f"{source.place}: holds no usable problem")


def least(*limits: int | None) -> int:
    """The smallest of the limits that are set."""
    return min((n for n in limits if n is not None), default=10**12)


def counts(sources: Sequence[Source], limit: int | None) -> Counter[str] | None:
    """The number of problems of each split, bad rows and repeats included; None if it is not known yet."""
    found: Counter[str] = Counter()
    for source in sources:
        if isinstance(source, FamilySource | PuzzleSource):
            found.update({split: _wanted(source, split, limit) for split in ("train", "heldout")})
        elif (rows := source.take or source.count()) is None and limit is None:
            return None
        else:
            found[source.split] += least(rows, limit)
    return found


def train_names(sources: Sequence[Source]) -> list[str] | None:
    """The source names that the training problems will have; None if a dataset has to be read to know."""
    names = {_name(source) for source in sources if isinstance(source, RowSource) and source.split == "train"}
    made = [source for source in sources if isinstance(source, FamilySource | PuzzleSource) and source.train]
    names |= {s.family if isinstance(s, FamilySource) else puzzles.source_of(s.reasoning_gym) for s in made}
    return None if None in names else sorted(filter(None, names))


def _name(source: RowSource) -> str | None:
    return source.source or (tables.stem(Path(source.file)) if isinstance(source, FileSource) else None)


def unreadable(sources: Sequence[Source]) -> str | None:
    """Why a source's rows cannot be read by its columns, or None if they can: a file's by
    `distill.sources.columns.unreadable`, a dataset's by `unreadable_set`."""
    return next(filter(None, map(_unreadable, sources)), None)


def _unreadable(source: Source) -> str | None:
    if not isinstance(source, RowSource):
        return None
    columns, skip = (source.prompt, source.reference, source.difficulty), source.on_bad_row == "skip"
    if isinstance(source, DatasetSource):
        return unreadable_set(source.data, columns, skip)
    return unreadable_row(source.rows(), columns, skip)


def unreadable_set(data: huggingface.DataSet, columns: Columns, skip: bool) -> str | None:
    """Why a local dataset's first row cannot be read by these columns; with ``skip``, only a missing column counts.
    None for a dataset on the hub, which only the stage itself opens."""
    if data.directory is None:
        return None
    return without(data.rows(), columns) if skip else unreadable_row(data.rows(), columns)


def dependencies(sources: Sequence[Source], hashes: FileHashes) -> dict[str, str]:
    """What the problems depend on: the code of the families, the version of reasoning-gym, the content of datasets."""
    names = {source.family for source in sources if isinstance(source, FamilySource)}
    found = {f"family {name}": code_of([name], hashes) for name in sorted(names)}
    if any(isinstance(source, PuzzleSource) for source in sources):
        found["reasoning-gym"] = installed("reasoning-gym")
    for source in sources:
        if isinstance(source, DatasetSource):
            found[f"data set {source.dataset}"] = source.data.identity(hashes)
    return found
