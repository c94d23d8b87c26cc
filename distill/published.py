"""Published traces: what somebody else's teacher has said, read from a row of a file: one trace, or several.

Decides how the forms in which people publish traces become a problem, a thinking and an answer: columns
of their own, think tags inside one column, a list of such responses, or a conversation (``role``/``content``
turns, or ``from``/``value`` ones). Other tags than ``<think>`` are named by the caller and brought into that
form. Called by the import stage. Left out: conversations of several questions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.columns import cell
from distill.letters import whole_letters
from distill.tables import Row
from distill.thinking import CLOSE, OPEN, split_thinking
from pipeline.errors import InputError

ROLES = {"human": "user", "gpt": "assistant"}
"""The names that ``from``/``value`` conversations have for the roles."""


@dataclass(frozen=True, slots=True)
class Said:
    """One published trace. ``prompt`` is None where a column of its own holds it."""

    thinking: str
    answer: str
    closed: bool
    prompt: str | None = None
    system: str | None = None
    flag: bool | None = None
    """What its publisher said of the answer: right or wrong; None for nothing."""

    @property
    def text(self) -> str:
        return f"{self.thinking}\x1f{self.answer}"


@dataclass(frozen=True, slots=True)
class TraceColumns:
    """Which columns of a row hold a trace: ``messages``, or ``answer`` with or without ``thinking``; or
    ``generations``, a list of responses that are a trace each, and ``flags``, a list of as many truths beside it.

    ``tags`` open and close the thinking, and the answer too where there are four, in a set that has others
    than ``<think>``.
    """

    answer: str | None = None
    thinking: str | None = None
    messages: str | None = None
    tags: Sequence[str] = ()
    generations: str | None = None
    flags: str | None = None

    def each(self, row: Row) -> Iterator[Said | InputError]:
        """Every trace of a row; in place of one that cannot be used, why."""
        try:
            if self.generations is None:
                yield self.read(row)
                return
            responses = _list(row, self.generations)
            flags = (
                _list(row, self.flags) if self.flags and row.get(self.flags) is not None else [None] * len(responses)
            )
            if len(flags) != len(responses):
                raise InputError(
                    f"{row.where}: column {self.flags!r} has {len(flags)} items for {len(responses)} generations"
                )
        except InputError as error:
            yield error
            return
        for number, (response, flag) in enumerate(zip(responses, flags, strict=True), start=1):
            yield self._generation(f"{row.where}: column {self.generations!r}, item {number}", response, flag)

    def _generation(self, where: str, response: Any, flag: Any) -> Said | InputError:
        if not isinstance(response, str) or not response.strip():
            return InputError(f"{where}: is {'empty' if response in (None, '') else 'not text'}")
        if not isinstance(flag, bool | None):
            return InputError(f"{where}: its flag in {self.flags!r} is {str(flag)[:40]!r}, neither true nor false")
        parts = split_thinking(_usual(whole_letters(response), self.tags), opened=response.lstrip().startswith(OPEN))
        return Said(parts.thinking, parts.answer, parts.closed, flag=flag)

    def read(self, row: Row) -> Said:
        """What the row says; `InputError` with file and line where it says nothing."""
        if self.messages is not None:
            said = _conversation(row, self.messages, self.tags)
        elif self.thinking is not None:
            said = _in_columns(_optional(row, self.thinking), _optional(row, self.answer))
        else:
            parts = split_thinking(_usual(_optional(row, self.answer), self.tags))
            said = Said(parts.thinking, parts.answer, parts.closed)
        if not said.thinking and not said.answer:
            raise InputError(f"{row.where}: the trace is empty (on_bad_row: skip leaves such rows out)")
        return said


def _in_columns(thinking: str, answer: str) -> Said:
    """Thinking with no answer after it was cut off. Tags around the thinking are not part of it."""
    thinking = split_thinking(thinking, opened=True).thinking
    return Said(thinking, answer, closed=bool(answer))


def _usual(response: str, tags: Sequence[str]) -> str:
    """A response with the think tags that everything stored has, in place of its own."""
    for tag, ours in zip(tags, (OPEN, CLOSE, "", ""), strict=False):
        response = response.replace(tag, ours)
    return response


def _optional(row: Row, column: str | None) -> str:
    value = None if column is None else cell(row, column)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{row.where}: column {column!r} is not text")
    return (value or "").strip()


def _conversation(row: Row, column: str, tags: Sequence[str]) -> Said:
    """A system turn or none, one question, one answer."""
    turns = [_turn(turn, row, column) for turn in _list(row, column, " of turns")]
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    if [role for role, _ in turns] != ["user", "assistant"]:
        found = ", ".join(role for role, _ in turns) or "none"
        raise InputError(f"{row.where}: column {column!r}: expected the turns user, assistant; found {found}")
    (_, prompt), (_, response) = turns
    if not prompt.strip():
        raise InputError(f"{row.where}: column {column!r}: the question is empty")
    response = _usual(response, tags)
    parts = split_thinking(response, opened=response.lstrip().startswith(OPEN))
    return Said(parts.thinking, parts.answer, parts.closed, prompt, system or None)


def _list(row: Row, column: str, of: str = "") -> list[Any]:
    value = row.get(column)
    try:
        found = json.loads(value) if isinstance(value, str) else value  # text, as CSV holds it
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise InputError(f"{row.where}: column {column!r} is not a list{of}")
    return found


def _turn(turn: Any, row: Row, column: str) -> tuple[str, str]:
    """(role, text) of one turn."""
    if isinstance(turn, Mapping):
        role = turn.get("role") or turn.get("from")
        text = turn.get("content") or turn.get("value") or ""
        if isinstance(role, str) and isinstance(text, str):
            return ROLES.get(role, role), whole_letters(text)
    raise InputError(f"{row.where}: column {column!r}: a turn has no role and content: {str(turn)[:60]!r}")
