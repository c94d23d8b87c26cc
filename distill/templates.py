"""Prompt templates: Jinja over a problem's fields, strict and pure.

Strict: an unknown field is an error when the pipeline is read. A field that a problem lacks is an error when the
template is rendered, before any engine is opened. Pure: the text is a function of the template and the problem;
whatever would bring in randomness or a memory address is removed. `distill.prompting` uses the templates.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from distill.types import Problem
from pipeline.errors import InputError
from pipeline.mistakes import nearest

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

FIELDS = ("prompt", "system", "source", "difficulty", "metadata")
"""The fields of a problem that a template may use; not the reference, since a prompt must not contain the answer."""


def fields_of(problem: Problem) -> dict[str, Any]:
    """The fields of a problem for a template. A field that the problem lacks is undefined (``{% if system is
    defined %}``), rather than the word None in the middle of a prompt."""
    found = {name: getattr(problem, name) for name in FIELDS}
    return {name: value for name, value in found.items() if value is not None} | {"metadata": dict(problem.metadata)}


class Template:
    """A template that may use the fields ``names``. Raises ValueError, with a message of one line, for a bad one."""

    def __init__(self, text: str, names: tuple[str, ...] = FIELDS) -> None:
        from jinja2 import TemplateError, TemplateSyntaxError, meta

        try:
            self.named = meta.find_undeclared_variables(_environment().parse(text)) - set(_environment().globals)
            self._template = _environment().from_string(text)
        except TemplateSyntaxError as error:
            raise ValueError(f"{_line(text, error.lineno)}not a Jinja template: {error.message}") from None
        except TemplateError as error:
            raise ValueError(f"not a Jinja template: {error.message}") from None
        for name in sorted(self.named - set(names)):
            raise ValueError(f"there is no field {name!r} of a problem{nearest(name, names)}")

    def render(self, fields: Mapping[str, Any]) -> str:
        """The rendered text. Raises ValueError for a missing field, or for whatever else the template fails on."""
        from jinja2 import UndefinedError

        try:
            return self._template.render(fields)
        except UndefinedError as error:
            if missing := sorted(self.named - set(fields)):
                raise ValueError(f"it has no {missing[0]}") from None
            raise ValueError(_plainly(error, fields)) from None
        except Exception as error:  # a sum of text and number, a division by zero: the template is the user's
            raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None

    def of(self, problem: Problem, key: str, **more: str) -> str:
        """The text for a problem and ``more`` fields; ``key`` is the template's key in YAML, for error messages."""
        try:
            return self.render(fields_of(problem) | more)
        except ValueError as error:
            raise InputError(f"{key}: does not fit problem {problem.name}: {error}") from None


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_text)
    environment.globals.clear()  # `lipsum` is random
    environment.globals["range"] = ImmutableSandboxedEnvironment().globals["range"]
    del environment.filters["random"]
    return environment


def _text(value: Any) -> Any:
    """Refuse values that do not belong in a prompt. A method (``prompt.upper``) is a typo and prints an address."""
    from jinja2 import Undefined

    if value is None:
        raise ValueError("a value in it is null")
    if isinstance(value, str | int | float | list | dict | Undefined):
        return value
    raise ValueError(f"a value in it is not text but a {type(value).__name__}")


def _plainly(error: Exception, fields: Mapping[str, Any]) -> str:
    """``'dict object' has no attribute 'topic'``, in the user's words."""
    known = ", ".join(sorted(map(str, fields.get("metadata", {})))) or "nothing"
    words = str(error).replace("'dict object' has no attribute", "metadata has no")
    return f"{words}; metadata has {known}" if words != str(error) else words


def _line(text: str, line: int | None) -> str:
    return f"line {line} of the text: " if line and "\n" in text.strip() else ""
