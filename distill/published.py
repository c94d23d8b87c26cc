"""Published traces: what somebody else's teacher has said, read from a row of a file.

Decides how the forms in which people publish traces become a problem, a thinking and an answer: columns
of their own, think tags inside one column, or a conversation (``role``/``content`` turns, or ``from``/
``value`` ones). Other tags than ``<think>`` are named by the caller and brought into that form. Called by the
import stage. Left out: conversations of several questions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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

    @property
    def text(self) -> str:
        return f"{self.thinking}\x1f{self.answer}"


@dataclass(frozen=True, slots=True)
class TraceColumns:
    """Which columns of a row hold a trace: ``messages``, or ``answer`` with or without ``thinking``.

    ``tags`` open and close the thinking, and the answer too where there are four, in a set that has others
    than ``<think>``.
    """

    answer: str | None = None
    thinking: str | None = None
    messages: str | None = None
    tags: Sequence[str] = ()

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
            raise InputError(f"{row.where}: the trace is empty")
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
    turns = [_turn(turn, row, column) for turn in _turns(row, column)]
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


def _turns(row: Row, column: str) -> list[Any]:
    value = row.get(column)
    if isinstance(value, str):  # as CSV holds it
        try:
            value = json.loads(value)
        except ValueError:
            raise InputError(f"{row.where}: column {column!r} is not a list of turns") from None
    if not isinstance(value, list):
        raise InputError(f"{row.where}: column {column!r} is not a list of turns")
    return value


def _turn(turn: Any, row: Row, column: str) -> tuple[str, str]:
    """(role, text) of one turn."""
    if isinstance(turn, Mapping):
        role = turn.get("role") or turn.get("from")
        text = turn.get("content") or turn.get("value") or ""
        if isinstance(role, str) and isinstance(text, str):
            return ROLES.get(role, role), whole_letters(text)
    raise InputError(f"{row.where}: column {column!r}: a turn has no role and content: {str(turn)[:60]!r}")
