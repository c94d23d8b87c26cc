"""Map the columns of a row to a problem, as written in YAML.

In place of a column name, a Jinja template over the row may be given: any string that contains ``{{`` or ``{%``.
``{{ text }}`` is the column of that name, ``{{ row["Correct Answer"] }}`` one whose name is not an identifier. The
filters in `FILTERS` are available beside Jinja's own. Rows are read by `distill.sources.tables` and
`distill.sources.huggingface`; `distill.sources.forms` holds the mappings of published datasets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from distill.letters import storable, whole_letters
from distill.sources.tables import Row
from distill.types import Problem
from distill.verifiers.compose import build
from distill.verifiers.extract import last_box
from distill.verifiers.run import unusable
from pipeline.errors import InputError
from pipeline.fingerprint import canonical, content_hash

if TYPE_CHECKING:
    import jinja2


def one_group(pattern: str) -> str:
    """Check that ``pattern`` is a regular expression with exactly one group, whose text is what is extracted."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(f"{pattern!r} has {groups} groups in parentheses; it needs one, around the part to extract")
    return pattern


LARGEST = 2**31 - 1
"""The largest absolute value of a difficulty."""

Pattern = Annotated[str, AfterValidator(one_group)]


# -- one cell ---------------------------------------------------------------------------------


def is_template(column: str) -> bool:
    return "{{" in column or "{%" in column


def column_or_template(column: str) -> str:
    if not is_template(column):
        return column
    import jinja2

    try:
        _template(column)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{column!r} is not a Jinja template: {error.message}") from None
    return column


Column = Annotated[str, AfterValidator(column_or_template)]
"""The name of a column, or a Jinja template."""


def boxed(text: Any) -> str:
    r"""The content of the last ``\boxed{}``, which is the answer in MATH's solutions."""
    found = last_box(str(text))
    if found is None:
        raise ValueError(r"has no \boxed{}")
    return found


def number(value: Any) -> str:
    """The first whole number in a text (``Level 5``), or "" if there is none (``Level ?``)."""
    found = re.search(r"-?\d+", str(value))
    return found[0] if found else ""


def letter(index: Any) -> str:
    """The letter of a multiple-choice answer that is stored as an index: 0 is A, 1 is B."""
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < 26:
        raise ValueError(f"{index!r} is not the index of a choice (0 to 25)")
    return chr(ord("A") + index)


FILTERS: dict[str, Callable[[Any], str]] = {"boxed": boxed, "number": number, "letter": letter}


@cache
def _template(text: str) -> jinja2.Template:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters.update(FILTERS)
    return environment.from_string(text)


def cell(row: Row, column: str) -> Any:
    """The value of a column, or a template rendered over the row. Raises `InputError` with the row's place."""
    if not is_template(column):
        return storable(row.get(column))
    if row.fault is not None:
        raise InputError(f"{row.where}: {row.fault}")
    try:
        return whole_letters(_template(column).render({**row.values, "row": row.values}))
    except Exception as error:  # a user's template may raise anything on a row that it does not fit
        raise InputError(f"{row.where}: {column!r}: {' '.join(str(error).split())}") from None


Columns = Iterable[str | Mapping[str, str] | None]
"""Columns or templates as settings give them: a name, a mapping of several, or None."""


def _named(columns: Columns) -> list[str]:
    named = [name for column in columns for name in (column.values() if isinstance(column, Mapping) else [column])]
    return list(filter(None, named))


def without(rows: Iterator[Row], columns: Columns) -> str | None:
    """Which of these columns the first row lacks, for rows that all have the same columns. Templates are not checked,
    since one that fails on the first row may fit others."""
    try:
        for row in islice(rows, 1):
            for name in _named(columns):
                if not is_template(name):
                    row.get(name)
    except InputError as error:
        return str(error)
    return None


def unreadable(rows: Iterator[Row], columns: Columns, skip: bool = False) -> str | None:
    """Why the first row cannot be read by these columns, most likely because one is missing; None if it can be.

    With ``skip``, None if any row can be read. Also None if there is no row, which the reader of the rows reports.
    """
    named = _named(columns)
    first: str | None = None
    try:
        for row in rows:
            try:
                for name in named:
                    cell(row, name)
            except InputError as error:
                if not skip:
                    return str(error)
                first = first or f"{error}; no row can be read"
            else:
                return None
    except InputError as error:  # of the file
        return str(error)
    return first


def text(row: Row, column: str) -> str:
    """A cell as text; lists and mappings as JSON. Raises `InputError` if it is empty."""
    return _in_text(row, column, cell(row, column))


def _in_text(row: Row, column: str, value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InputError(f"{row.where}: column {column!r} is empty")
    if isinstance(value, str | Decimal | date | time):  # Parquet has decimals and dates
        return str(value)
    return as_json(row, column, value)


def as_json(row: Row, column: str, value: Any) -> str:
    """A value that is not text, as JSON. NaN and infinity, which Python's JSON reader accepts, are refused."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_as_text)
    except ValueError:
        raise InputError(f"{row.where}: column {column!r} holds NaN or infinity; expected a number") from None
    except TypeError as error:
        raise InputError(f"{row.where}: column {column!r} is neither text nor plain data: {error}") from None


def _as_text(value: Any) -> str:
    if isinstance(value, Decimal | date | time):
        return str(value)
    raise TypeError(f"it holds {type(value).__name__}")


# -- a problem --------------------------------------------------------------------------------

_built = cache(build)


@dataclass(frozen=True, slots=True)
class ProblemColumns:
    """The columns (or templates) that make a problem.

    ``reference`` is a column, or a mapping of names to columns, which becomes a JSON object (the form in which the
    `code` verifier takes its tests). None means that there is no reference.
    """

    prompt: str | None
    reference: str | Mapping[str, str] | None
    reference_pattern: str | None = None
    difficulty: str | None = None
    instruction: str = ""

    def problem(
        self,
        row: Row,
        verifier: str,
        source: str,
        split: str,
        licence: str,
        prompt: str | None = None,
        system: str | None = None,
    ) -> Problem:
        """The row's problem. ``prompt`` is its text if no column holds it. ``verifier`` is "" if the caller brings its
        own verifier."""
        if self.prompt is not None:
            asked = cell(row, self.prompt)
            prompt = _in_text(row, self.prompt, asked)
            if not isinstance(asked, str | int | float):
                raise InputError(f"{row.where}: column {self.prompt!r} is not text")
        prompt = prompt or ""
        prompt = f"{prompt}\n\n{self.instruction}" if self.instruction else prompt
        reference = self._reference(row)
        problem = Problem(
            id=f"{source}/{content_hash([system, prompt, reference, verifier])[:12]}",
            prompt=prompt,
            reference=reference,
            verifier=verifier,
            source=source,
            split=split,
            difficulty=self._difficulty(row),
            licence=licence,
            system=system,
            origin=row.where,
        )
        if self.reference is not None and verifier and (why := unusable(_built(verifier), problem)):
            raise InputError(f"{row.where}: the verifier {verifier!r} cannot judge any answer to this problem: {why}")
        return problem

    def _reference(self, row: Row) -> str:
        if self.reference is None:
            return ""
        if isinstance(self.reference, Mapping):
            cells = {name: (column, cell(row, column)) for name, column in self.reference.items()}
            return canonical({name: json.loads(as_json(row, *held)) for name, held in cells.items()})
        reference = text(row, self.reference)
        if self.reference_pattern:
            found = re.findall(self.reference_pattern, reference)
            if not found:
                raise InputError(f"{row.where}: {self.reference_pattern!r} is not found in column {self.reference!r}")
            reference = found[-1]
        return reference.strip()

    def _difficulty(self, row: Row) -> int | None:
        if self.difficulty is None:
            return None
        value = cell(row, self.difficulty)
        if value is None or value == "":  # as in an export of problems some of which have none
            return None
        try:
            found = int(value)
        except (TypeError, ValueError, OverflowError):
            found = LARGEST + 1
        if abs(found) > LARGEST or (isinstance(value, float) and value != found):
            raise InputError(f"{row.where}: column {self.difficulty!r} is not a whole number of at most {LARGEST}")
        return found
