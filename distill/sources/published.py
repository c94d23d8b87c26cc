"""Read published traces of other teachers from the rows of a file; a row may hold one trace or several.

Decides how the usual forms of published traces become a prompt, thinking and an answer: separate columns, think tags
inside one column, a list of such responses, or a conversation (``role``/``content`` or ``from``/``value`` turns). The
caller names tags other than ``<think>``, which are replaced by that one. Called by the import stage. Left out:
conversations with several questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distill.letters import whole_letters
from distill.sources.columns import cell
from distill.sources.tables import Row
from distill.thinking import CLOSE, OPEN, split_thinking
from pipeline.errors import InputError

ROLES = {"human": "user", "gpt": "assistant"}
"""The role names in ``from``/``value`` conversations."""
CUT = ("length", "max_tokens")
"""How servers call the end of a response that reached its token limit."""


@dataclass(frozen=True, slots=True)
class PublishedTrace:
    """One published trace. ``prompt`` is None if it is in a separate column."""

    thinking: str
    answer: str
    closed: bool
    prompt: str | None = None
    system: str | None = None
    flag: bool | None = None
    """Whether its publisher marked the answer as right or wrong; None if neither."""
    cut: bool = False
    """Whether its publisher says that it was cut off at a token limit."""

    @property
    def text(self) -> str:
        """What the trace is known by."""
        return "\x1f".join([self.thinking, self.answer, *(["cut"] if self.cut else [])])


@dataclass(frozen=True, slots=True)
class TraceColumns:
    """The columns of a row that hold a trace.

    Either ``messages``; or ``answer``, with or without ``thinking``; or ``generations``, a list of responses, each of
    which is a trace, and optionally ``flags``, a list of booleans of the same length. ``tags`` are the opening and
    closing tags of the thinking, if not ``<think>``, and optionally those of the answer too. ``finish`` says how a
    response ended (`CUT`); with ``generations``, it is a list.
    """

    answer: str | None = None
    thinking: str | None = None
    messages: str | None = None
    tags: Sequence[str] = ()
    generations: str | None = None
    flags: str | None = None
    finish: str | None = None

    def each(self, row: Row) -> Iterator[PublishedTrace | InputError]:
        """Yield every trace of a row; for one that cannot be used, the error."""
        try:
            if self.generations is None:
                yield self.read(row)
                return
            responses = _list(row, self.generations)
            flags, ends = (_beside(row, column, len(responses)) for column in (self.flags, self.finish))
        except InputError as error:
            yield error
            return
        for number, parts in enumerate(zip(responses, flags, ends, strict=True), start=1):
            yield self._generation(f"{row.where}: column {self.generations!r}, item {number}", *parts)

    def _generation(self, where: str, response: Any, flag: Any, end: Any) -> PublishedTrace | InputError:
        if not isinstance(response, str) or not response.strip():
            return InputError(f"{where}: is {'empty' if response in (None, '') else 'not text'}")
        if not isinstance(flag, bool | None):
            return InputError(f"{where}: its flag in {self.flags!r} is {str(flag)[:40]!r}, neither true nor false")
        parts = split_thinking(_usual(whole_letters(response), self.tags))
        return PublishedTrace(parts.thinking, parts.answer, parts.closed, flag=flag, cut=end in CUT)

    def read(self, row: Row) -> PublishedTrace:
        """The trace of a row. Raises `InputError` with file and line if it is empty."""
        if self.messages is not None:
            trace = _conversation(row, self.messages, self.tags)
        elif self.thinking is not None:
            trace = _in_columns(_optional(row, self.thinking), _optional(row, self.answer))
        else:
            parts = split_thinking(_usual(_optional(row, self.answer), self.tags))
            trace = PublishedTrace(parts.thinking, parts.answer, parts.closed)
        if not trace.thinking and not trace.answer:
            raise InputError(f"{row.where}: the trace is empty (on_bad_row: skip leaves such rows out)")
        return replace(trace, cut=cell(row, self.finish) in CUT) if self.finish else trace


def _in_columns(thinking: str, answer: str) -> PublishedTrace:
    """Build a trace from separate columns. Without an answer, the thinking was cut off. Tags around it are removed."""
    thinking = split_thinking(thinking, opened=True).thinking
    return PublishedTrace(thinking, answer, closed=bool(answer))


def _usual(response: str, tags: Sequence[str]) -> str:
    """Replace the response's own tags by the think tags of the store, and remove those around its answer."""
    for tag, ours in zip(tags, (OPEN, CLOSE, "", ""), strict=False):
        response = response.replace(tag, ours)
    return response


def _optional(row: Row, column: str | None) -> str:
    value = None if column is None else cell(row, column)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{row.where}: column {column!r} is not text")
    return (value or "").strip()


def _conversation(row: Row, column: str, tags: Sequence[str]) -> PublishedTrace:
    """Read a conversation: an optional system turn, one question, one answer."""
    turns = [_turn(turn, row, column) for turn in _list(row, column, " of turns")]
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    if [role for role, _ in turns] != ["user", "assistant"]:
        found = ", ".join(role for role, _ in turns) or "none"
        raise InputError(f"{row.where}: column {column!r}: expected the turns user, assistant; found {found}")
    (_, prompt), (_, response) = turns
    if not prompt.strip():
        raise InputError(f"{row.where}: column {column!r}: the question is empty")
    parts = split_thinking(_usual(response, tags))
    return PublishedTrace(parts.thinking, parts.answer, parts.closed, prompt, system or None)


def _list(row: Row, column: str, of: str = "") -> list[Any]:
    value = row.get(column)
    try:
        found = json.loads(value) if isinstance(value, str) else value  # text, as CSV holds it
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise InputError(f"{row.where}: column {column!r} is not a list{of}")
    return found


def _beside(row: Row, column: str | None, count: int) -> list[Any]:
    """The items of a column that has one for each of ``count`` generations, or none at all."""
    if column is None or row.get(column) is None:
        return [None] * count
    found = _list(row, column)
    if len(found) != count:
        raise InputError(f"{row.where}: column {column!r} has {len(found)} items for {count} generations")
    return found


def _turn(turn: Any, row: Row, column: str) -> tuple[str, str]:
    """(role, text) of one turn."""
    if isinstance(turn, Mapping):
        role = turn.get("role") or turn.get("from")
        text = turn.get("content") or turn.get("value") or ""
        if isinstance(role, str) and isinstance(text, str):
            return ROLES.get(role, role), whole_letters(text)
    raise InputError(f"{row.where}: column {column!r}: a turn has no role and content: {str(turn)[:60]!r}")
