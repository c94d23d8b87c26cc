"""The part of `generate` behind ``until``: adaptive sampling (`distill.adaptive`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distill import verification
from distill.adaptive.course import Course
from distill.adaptive.figures import figures_of
from distill.adaptive.known import Cuts, Known
from distill.adaptive.settings import UntilSettings
from distill.adaptive.stream import Stream
from distill.engines.base import Engine
from distill.generation import Wanted
from distill.stages.common import resolved
from distill.store import Store
from distill.store.records import record_members
from distill.types import Problem
from pipeline.stage import Context

Tasks = Sequence[tuple[str, Problem]]


def make(
    context: Context, store: Store, until: UntilSettings, cuts: Cuts, tasks: Tasks, tries: Sequence[Wanted],
    open_engine: Callable[[], Engine],
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Make the missing ones of ``tries``, which are ``until.most`` per problem. Returns the digest of the members, in
    the same form as without ``until``, and the figures."""
    store.ingest()
    course, known, judges = _begin(context, store, until, cuts, tasks, tries)
    stream = Stream(store, course, known, context)
    stream.run(open_engine, until.workers)
    tried = [known.wish(place) for place in course.members()]
    wishes = [wish for wish in tried if wish.key not in known.cut]
    digest = record_members(store, [(wish.problem_key, wish.key) for wish in wishes])
    done, total = course.progress()
    context.progress(done, total)
    figures = figures_of(store, digest, course, [key for key, _ in tasks])
    for share in course.shares:
        if share.quota and share.accepted < share.quota.accepted:
            context.note(
                f"quota of {share.quota}: only {share.accepted} of {share.quota.accepted}, as no problem is left"
            )
    figures["members"] = len(wishes)
    if left_out := len(tried) - len(wishes):
        figures |= {"truncated": len({wish.key for wish in tried} & known.cut), "left_out": left_out}
    return digest, figures | verification.failed_once(stream.verdicts) | {"versions": judges.versions}


def bounds(
    context: Context, store: Store, until: UntilSettings, cuts: Cuts, tasks: Tasks, tries: Sequence[Wanted]
) -> tuple[int, int, int]:
    """(most traces in total, those of them that exist, fewest traces still to make), by the verdicts known now."""
    course, known, _ = _begin(context, store, until, cuts, tasks, tries)
    open_ = known.open(course, course.start())
    least = {known.wish(place).key for place in open_} - known.traces
    most = {known.wish(place).key for place in course.may_want()}
    return len(most), len(most & known.traces), len(least)


def _begin(
    context: Context, store: Store, until: UntilSettings, cuts: Cuts, tasks: Tasks, tries: Sequence[Wanted]
) -> tuple[Course, Known, verification.Judges]:
    course = until.course([problem for _, problem in tasks])
    judges = verification.Judges(resolved(context, until.verifier), context.hashes)
    return course, Known(store, tries, until.most, judges, cuts, until.distinct), judges
