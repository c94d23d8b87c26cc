"""YAML as plain data, with the line number of every key.

Leaves out all meaning on purpose: `pipeline.config` asks for the location of what it finds wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import InputError

KeyPath = tuple[str | int, ...]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML in which ``5e-4`` is a number (YAML 1.1 reads it as text: a classic trap)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Document:
    """A parsed file: ``data``, and the 1-based line number of each key path."""

    path: Path
    data: dict[str, Any]
    lines: dict[tuple[str, ...], int] = field(repr=False)
    overrides: dict[tuple[str, ...], str] = field(default_factory=dict, repr=False)
    """The ``--set`` options that changed ``data``, by key path (without the leading "stages")."""

    def where(self, key: KeyPath) -> str:
        """``file:line: a.b.c`` of a key, with the nearest enclosing line if the key is absent; ``--set ...`` if it
        was set on the command line."""
        known = tuple(map(str, key))
        short = known[1:] if known[:1] == ("stages",) else known
        for path, text in self.overrides.items():
            if short[: len(path)] == path:
                return f"--set {text}"
        while known and known not in self.lines:
            known = known[:-1]
        name = ".".join(map(str, key))
        return f"{self.path}:{self.lines.get(known, 1)}: {name}" if name else f"{self.path}:1"


def read(path: Path) -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}:{line}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    return parse(text, path)


def parse(text: str, path: Path) -> Document:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise InputError(f"{path}:1: the file is empty; `distill init` writes one to start from")
        if not isinstance(node, yaml.MappingNode):
            kind = "list" if isinstance(node, yaml.SequenceNode) else "single value"
            raise InputError(f"{path}:1: is a {kind}; expected a mapping with the keys name, stages, ...")
        lines: dict[tuple[str, ...], int] = {}
        _collect(node, (), lines, path)
        return Document(path, loader.construct_document(node), lines)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {_problem(error)}") from None
    except ValueError as error:  # an invalid date or tagged number
        raise InputError(f"{path}:1: not valid YAML: {error}") from None
    except RecursionError:
        raise InputError(f"{path}:1: not valid YAML: something in it contains itself") from None
    finally:
        loader.dispose()


def _collect(node: yaml.Node, prefix: tuple[str, ...], lines: dict[tuple[str, ...], int], path: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{path}:{key.start_mark.line + 1}: a key must be a single value")
            where, line = (*prefix, key.value), key.start_mark.line + 1
            if where in lines:
                raise InputError(f"{path}:{line}: {'.'.join(where)}: duplicate key (first on line {lines[where]})")
            lines[where] = line
            _collect(value, where, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*prefix, str(index))] = value.start_mark.line + 1
            _collect(value, (*prefix, str(index)), lines, path)


def parse_value(text: str) -> Any:
    """One value as YAML reads it (for ``--set key=value``)."""
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{text}: not valid YAML: {_problem(error)}") from None
    finally:
        loader.dispose()


def _problem(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())
