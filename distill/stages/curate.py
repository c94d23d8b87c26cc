"""curate, curate-traces: remove duplicates and overlap with evaluation sets, and keep the evidence.

There are two stages: `curate` filters problems, before anything is paid for; `curate-traces` filters published traces
by the problems that they answer. The evidence is in the table `curation`, under the stage's fingerprint. Held-out
problems are never removed: the others are compared with them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from distill.sources import problems as sources
from distill.sources.problems import Source
from distill.stages.common import Problems, Traces, members_present, store_of
from distill.store import Store
from distill.store.records import Row, problems, record_members
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Output, Settings, Stage, stop_check

if TYPE_CHECKING:
    from distill.curation.contamination import Item
    from distill.curation.review import Entry, Overlap, Rules

BATCH = 5000
WHY = "the table `curation` (`distill traces sql`) says why"
TEXTS = (
    "SELECT p.problem_key, p.source, p.prompt FROM problems p SEMI JOIN "
    "(SELECT {column} AS problem_key FROM members WHERE collection = ? AND {which}) USING (problem_key) "
    "ORDER BY p.problem_key"
)
IN_PROBLEMS = TEXTS.format(column="row_key", which="label = 'train'")
IN_TRACES = TEXTS.format(column="label", which="true")


class NearSettings(Settings):
    """Near duplicates, by Jaccard similarity: the share of runs of ``shingle`` tokens that two problems have in common.
    A problem that is this similar to an item of an evaluation set is contaminated."""

    similarity: Annotated[float, Field(ge=0.3, le=1.0)] = 0.8
    """Jaccard similarity from which two problems count as one. In a short problem, another number makes another
    problem."""
    shingle: Annotated[int, Field(ge=1, le=20)] = 3
    """Tokens per shingle, the runs that are compared."""


class CurationSettings(Settings):
    exact: bool = True
    """Keep only one of several problems with the same text (ignoring white space)."""
    near: NearSettings | None = NearSettings()
    """Remove near duplicates; `null` keeps them."""
    against: dict[str, Source] = Field(default_factory=dict)
    """Evaluation sets to check against, by name, each a source as in `problems`: `{math500: {file:
    data/math500_test.json, form: math500}}`."""
    ngram: Annotated[int, Field(ge=2, le=50)] = 13
    """Number of consecutive words that count as an overlap: 13 in GPT-3; s1 and open-r1 use a stricter 8."""
    share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Minimum share of an evaluation item's n-grams that must be found. At 0, one is enough."""
    contaminated: Literal["drop", "tell"] = "drop"
    """`tell` keeps contaminated problems and only records the evidence."""
    seed: int = 0


class CurateSettings(CurationSettings):
    problems: Annotated[str, Input(accepts=Problems)]
    heldout: bool = True
    """Also check against the same stage's held-out problems (as evaluation set `heldout`)."""


class CurateTracesSettings(CurationSettings):
    traces: Annotated[str, Input(accepts=Traces)]


def run(context: Context, settings: CurateSettings) -> Output:
    store, upstream = store_of(context), context.inputs[settings.problems]
    held_out = problems(store, upstream.digest, "heldout") if settings.heldout else []
    items = [_item("heldout", problem) for _, problem in held_out] + _evaluation_sets(context, settings)
    found = _review(context, settings, IN_PROBLEMS, upstream.digest, items)
    gone = {overlap.key for overlap in found if overlap.removed}
    members = [(label, key) for label, key in _members(store, upstream.digest) if label != "train" or key not in gone]
    counts = Counter(label for label, _ in members)
    if not counts["train"]:
        raise InputError(f"stage {context.name}: no training problem is left; {WHY}")
    digest = record_members(store, members)
    kept = {"members": len(members), "verifiers": upstream.figures["verifiers"], **counts}
    return Output(digest, kept | _figures(found, items))


def run_traces(context: Context, settings: CurateTracesSettings) -> Output:
    store, upstream = store_of(context), context.inputs[settings.traces]
    items = _evaluation_sets(context, settings)
    found = _review(context, settings, IN_TRACES, upstream.digest, items)
    gone = {overlap.key for overlap in found if overlap.removed}
    members = [(problem, key) for problem, key in _members(store, upstream.digest) if problem not in gone]
    if not members:
        raise InputError(f"stage {context.name}: no trace is left; {WHY}")
    digest = record_members(store, members)
    return Output(digest, {"members": len(members), "traces": len(members), **_figures(found, items)})


def _members(store: Store, collection: str) -> list[tuple[str, str]]:
    rows = store.rows("SELECT label, row_key FROM members WHERE collection = ? ORDER BY position", [collection])
    return [(row["label"], row["row_key"]) for row in rows]


# -- the review -------------------------------------------------------------------------------


def _review(
    context: Context, settings: CurationSettings, sql: str, collection: str, items: list[Item]
) -> list[Overlap]:
    """Find overlaps and store the evidence."""
    from distill.curation.review import Entry, review

    store = store_of(context)

    def read() -> Iterator[list[Entry]]:
        done = 0
        with store.reading() as connection:
            result = connection.execute(sql, [collection])
            while rows := result.fetchmany(BATCH):
                yield [Entry(*row) for row in rows]
                done += len(rows)
                context.progress(done, None)
                stop_check(context.stopping)

    found = review(read, lambda keys: _texts(store, keys), items, _rules(settings))
    store.append("curation", _evidence(store, context.fingerprint, found))
    store.ingest()
    return found


def _rules(settings: CurationSettings) -> Rules:
    from distill.curation.review import Rules

    near = settings.near or NearSettings()
    return Rules(
        exact=settings.exact,
        similarity=near.similarity if settings.near else None,
        shingle=near.shingle,
        ngram=settings.ngram,
        share=settings.share,
        tell=settings.contaminated == "tell",
    )


def _item(evaluation: str, problem: Any) -> Item:
    from distill.curation.contamination import Item

    return Item(evaluation, problem.id, problem.origin, problem.prompt)


def _evaluation_sets(context: Context, settings: CurationSettings) -> list[Item]:
    return [
        item
        for name, source in settings.against.items()
        for item in _evaluation_set(name, source, settings.seed, context)
    ]


def _evaluation_set(name: str, source: Source, seed: int, context: Context) -> list[Item]:
    """All problems of a source, from every split, without the instruction that is added to prompts."""
    if hasattr(source, "instruction"):
        source = source.model_copy(update={"instruction": ""})
    found = [
        _item(name, problem)
        for split in sources.SPLITS
        for problem in sources.problems_of(source, split, seed, None, context.note)
    ]
    if not found:
        raise InputError(f"stage {context.name}: the evaluation set {name} holds no problem")
    return found


def _texts(store: Store, keys: Sequence[str]) -> list[str]:
    rows = store.among(
        "problem_key", keys, "SELECT problem_key, prompt FROM problems SEMI JOIN wanted USING (problem_key)"
    )
    found = {row["problem_key"]: row["prompt"] for row in rows}
    return [found[key] for key in keys]


def _evidence(store: Store, run: str, found: Sequence[Overlap]) -> list[Row]:
    """The rows of `curation`, sorted by problem."""
    others = sorted({overlap.other for overlap in found if isinstance(overlap.other, str)})
    named = store.among(
        "problem_key",
        others,
        "SELECT problem_key, problem_id, origin FROM problems SEMI JOIN wanted USING (problem_key)",
    )
    name_of = {row["problem_key"]: (row["problem_id"], row["origin"]) for row in named}
    rows = []
    for position, overlap in enumerate(sorted(found, key=lambda overlap: (overlap.key, overlap.kind, -overlap.share))):
        other = overlap.other
        name, origin = name_of[other] if isinstance(other, str) else (other.name, other.origin)
        rows.append(
            {
                "run": run, "position": position, "problem_key": overlap.key, "kind": overlap.kind,
                "evaluation": None if isinstance(other, str) else other.evaluation, "other": name,
                "other_origin": origin, "share": overlap.share, "ngram": overlap.ngram, "removed": overlap.removed,
            }
        )  # fmt: skip
    return rows


def _figures(found: Sequence[Overlap], items: Sequence[Item]) -> dict[str, Any]:
    """The number of problems for each kind of overlap, and for each evaluation set, even if there are none."""
    among = {kind: {o.key for o in found if o.kind == kind and isinstance(o.other, str)} for kind in ("exact", "near")}
    sets = sorted({item.evaluation for item in items})
    against = {
        name: len({o.key for o in found if not isinstance(o.other, str) and o.other.evaluation == name})
        for name in sets
    }
    return {
        "exact_duplicates": len(among["exact"]),
        "near_duplicates": len(among["near"]),
        "contaminated": len({o.key for o in found if not isinstance(o.other, str)}),
        "removed": len({o.key for o in found if o.removed}),
        "against": against,
    }


# -- what it depends on -----------------------------------------------------------------------


def dependencies(settings: CurationSettings, hashes: FileHashes, _: Mapping[str, Manifest]) -> dict[str, str]:
    return sources.dependencies(list(settings.against.values()), hashes)


def refuse(settings: CurationSettings, _: Mapping[str, Mapping[str, Any]]) -> str | None:
    return sources.unreadable(list(settings.against.values()))


def forecast(context: Context, settings: CurateSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    known = {side: n for side, n in expected.get(settings.problems, {}).items() if side in sources.SPLITS}
    names = {key: of for key, of in expected.get(settings.problems, {}).items() if key == "train_sources"}
    return Forecast("problems", sum(known.values()) if known else None, figures=known | names)


def forecast_traces(
    context: Context, settings: CurateTracesSettings, expected: Mapping[str, Mapping[str, Any]]
) -> Forecast:  # fmt: skip
    return Forecast("traces", expected.get(settings.traces, {}).get("traces"))


STAGE = Stage(
    kind="curate",
    about="remove duplicate problems, and those that overlap with evaluation sets, and keep the evidence",
    settings=CurateSettings,
    produces="problems",
    run=run,
    version=4,
    forecast=forecast,
    narrows=True,
    dependencies=dependencies,
    check=members_present,
    refuse=refuse,
)

TRACES = Stage(
    kind="curate-traces",
    about="remove traces whose problem is a duplicate or overlaps with evaluation sets, and keep the evidence",
    settings=CurateTracesSettings,
    produces="traces",
    run=run_traces,
    version=4,
    forecast=forecast_traces,
    narrows=True,
    dependencies=dependencies,
    check=members_present,
    refuse=refuse,
)
