"""Verify files of answers: map columns to a problem and a response, and yield the verdicts in the file's order.

The library behind `distill verify`. It holds only a window of a file's rows in memory. `Judged.line` formats a verdict;
the caller writes it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

from distill.sources.columns import ProblemColumns, as_json, one_group
from distill.sources.tables import Row
from distill.thinking import Response, split_thinking
from distill.types import Failure, Outcome, Problem, Verdict
from distill.verifiers import VerifierPool, build
from distill.verifiers.asking import holds_opened
from distill.verifiers.compose import Spec
from distill.verifiers.order import in_order
from pipeline.errors import InputError


@dataclass(frozen=True, slots=True)
class AnswerColumns:
    """The columns that hold the response, its reference and the rest of the problem.

    ``reference`` is as in `ProblemColumns`; None means that there is no reference. If ``id`` is None, the column ``id``
    is used where there is one. Set ``opened`` if the prompts ended inside a ``<think>``.
    """

    response: str = "response"
    reference: str | Mapping[str, str] | None = "answer"
    reference_pattern: str | None = None
    prompt: str | None = None
    thinking: str | None = None
    id: str | None = None
    opened: bool = False

    def __post_init__(self) -> None:
        try:
            if self.reference_pattern is not None:
                one_group(self.reference_pattern)
        except ValueError as error:
            raise InputError(f"the pattern of the answer: {error}") from None

    def read(self, row: Row) -> tuple[Problem, Response]:
        """The problem and the response of a row. Raises `InputError`, with the place, if the row lacks them."""
        columns = ProblemColumns(self.prompt, self.reference, self.reference_pattern)
        problem = columns.problem(row, verifier="", source=row.stem, split="", licence="unknown")
        response = split_thinking(_text(row, self.response), self.opened)
        if self.thinking is not None:
            response = Response(_text(row, self.thinking), response.answer, response.closed)
        self.name(row)
        return problem, response

    def name(self, row: Row) -> Any:
        return row.values.get("id") if self.id is None else row.get(self.id)


def _text(row: Row, column: str) -> str:
    """The text of a cell; a number as its digits. Empty text is allowed, since a response may be empty."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return as_json(row, column, value)
    kind = "null" if value is None else type(value).__name__
    raise InputError(f"{row.where}: column {column!r} holds {kind}; expected text")


@dataclass(frozen=True, slots=True)
class Judged:
    """``row`` counts the file's rows from 1."""

    row: int
    id: Any
    verdict: Verdict

    def line(self) -> str:
        """The verdict as one line of JSON. It contains no times, so that equal files give equal lines."""
        named = {} if self.id is None else {"id": self.id}
        v = self.verdict
        judged = {"verdict": v.outcome, "score": v.score, "reason": v.reason, "evidence": v.evidence}
        signed = {"verifier": v.verifier, "version": v.version}
        return json.dumps({"row": self.row, **named, **judged, **signed}, ensure_ascii=False, default=str)


MOST_REASONS = 1_000
"""The most distinct reasons that are counted: a file with a million different faults must not fill the memory."""


class Tally(Counter[str]):
    """Counts of outcomes and of failures. ``reasons`` counts the reasons of unverifiable verdicts."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        """The first reason of each kind of failure."""

    def add(self, outcome: str, failure: str | None, reason: str = "") -> None:
        self.update([str(outcome), *([str(failure)] if failure else [])])
        reason = reason[:160]
        if failure:
            self.failures.setdefault(str(failure), reason)
        known = reason in self.reasons or len(self.reasons) < MOST_REASONS
        if outcome == Outcome.UNVERIFIABLE and known:
            self.reasons[reason] += 1

    @property
    def rows(self) -> int:
        return sum(self[outcome] for outcome in Outcome)

    @property
    def abstained(self) -> int:
        return self[Outcome.UNVERIFIABLE] - sum(self[failure] for failure in Failure)


def check_rows(rows: Iterable[Row], columns: AnswerColumns, skip: bool) -> int:
    """Check that every row can be read, and return their number.

    This finds a fault on the last line before hours of judging, not after. With ``skip`` one readable row is enough: if
    there is none, the name of a column is wrong and not the rows.
    """
    count, first, found = 0, None, False
    for row in rows:
        count += 1
        if found and skip:
            continue
        try:
            columns.read(row)
            found = True
        except InputError as error:
            if not skip:
                raise InputError(f"{error}; to skip such rows, add --on-bad-row skip") from None
            first = first or error
    if first and not found:
        raise InputError(f"{first}; none of the {count:,} rows can be read")
    return count


def judge_rows(
    rows: Iterable[Row],
    columns: AnswerColumns,
    spec: Spec,
    pool: VerifierPool,
    stopping: Callable[[], bool] = lambda: False,
    first: int = 1,
) -> Iterator[Judged]:
    """Yield the verdict of every row, in order. ``first`` is the number of the first row.

    A row that cannot be read is `unverifiable` (``failure: input``); leaving it out would shift the others. Ends early
    once ``stopping`` returns true; every verdict that was yielded by then is complete.
    """
    verifier = build(spec)

    def read() -> Iterator[tuple[int, Any, tuple[Problem, Response] | Verdict]]:
        for number, row in enumerate(rows, first):
            try:
                yield number, columns.name(row), columns.read(row)
            except InputError as error:
                bad = Verdict.failed(Failure.INPUT, str(error))
                bad = replace(bad, verifier=verifier.name, version=verifier.version)
                yield number, row.values.get(columns.id or "id"), bad

    judge = _by_opened if holds_opened(verifier) else _by_workers
    for number, name, verdict in judge(read(), spec, pool, stopping):
        yield Judged(number, name, verdict)


Numbered = Iterator[tuple[int, Any, tuple[Problem, Response] | Verdict]]
Found = Iterator[tuple[int, Any, Verdict]]


def _by_workers(rows: Numbered, spec: Spec, pool: VerifierPool, stopping: Callable[[], bool]) -> Found:
    def asked() -> Iterator[tuple[tuple[int, Any], Future[Verdict]]]:
        for number, name, what in rows:
            yield (number, name), _resolved(what) if isinstance(what, Verdict) else pool.submit(spec, *what)

    for (number, name), verdict in in_order(asked(), stopping):
        yield number, name, verdict


def _by_opened(rows: Numbered, spec: Spec, pool: VerifierPool, stopping: Callable[[], bool]) -> Found:
    """A judge is asked about many rows at a time. The windows of `distill.verifiers.asking` bound what is held here."""
    names: dict[int, Any] = {}
    known: dict[int, Verdict] = {}

    def asked() -> Iterator[tuple[int, Spec, Problem, Response]]:
        for number, name, what in rows:
            names[number] = name
            if isinstance(what, Verdict):
                known[number] = what
            else:
                yield number, spec, *what

    def next_ones() -> Found:
        while (number := next(iter(names), 0)) in known:
            yield number, names.pop(number), known.pop(number)

    for number, verdict in pool.verify_many(asked(), stopping):
        known[number] = verdict
        yield from next_ones()
    yield from next_ones()


def _resolved(verdict: Verdict) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future
