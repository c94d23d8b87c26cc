"""The YAML keys of settings and their meanings, read from the classes and the docstrings under their fields.

`distill list stages NAME` shows them, and docs/yaml.md is generated from them.
"""

from __future__ import annotations

import ast
import inspect
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any

from pydantic import BaseModel

from distill.modelspec import STAGE
from pipeline.mistakes import models_in
from pipeline.stage import File, Input, Operational

REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Key:
    """``name`` includes the mappings that contain it (``lora.rank``). In ``type``, literal values are in backticks.
    ``default`` is JSON, or `REQUIRED`."""

    name: str
    type: str
    default: str
    what: str


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every key, each followed by the keys nested in it."""
    docs = attribute_docs(model)
    for name, info in model.model_fields.items():
        inner = models_in(info.annotation) + [m for mark in info.metadata for m in models_in(mark)]
        default = REQUIRED if info.is_required() else in_json(info.get_default(call_default_factory=True))
        what = " ".join(part for part in [docs.get(name, ""), *map(_mark, info.metadata)] if part)
        yield Key(f"{prefix}{name}", _type(info.annotation), default, what)
        for part in inner:
            kind = part.__name__.removesuffix("Options").removesuffix("Source").lower()
            yield from keys_of(part, f"{prefix}{name}." if len(inner) == 1 else f"{prefix}{name}({kind}).")


def _mark(mark: Any) -> str:
    if isinstance(mark, Operational):
        return "*speed*"
    if isinstance(mark, File):
        return "A file; its content is part of the fingerprint."
    if isinstance(mark, Input):
        makes = " or ".join(mark.accepts)
        if mark.prefix:
            return "A model." if mark.prefix == STAGE else ""
        return f"A stage that makes {makes}."
    return ""


def _type(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    if origin is typing.Literal:
        return " | ".join(f"`{value}`" for value in inner)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin in (list, tuple):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"mapping to {_type(inner[1])}"
    if inner:
        return " | ".join(dict.fromkeys(_type(part) for part in inner))
    names = {type(None): "null", str: "text", int: "integer", float: "number", Decimal: "number", bool: "true/false"}
    return {**names, Any: "any"}.get(annotation, str(annotation))


def in_json(value: Any) -> str:
    if isinstance(value, BaseModel):
        return json.dumps(value.model_dump(mode="json"))
    return json.dumps(value, default=str)


def attribute_docs(settings: type) -> dict[str, str]:
    """The docstrings under the fields, which Python itself discards."""
    found: dict[str, str] = {}
    for cls in reversed(settings.__mro__[:-1]):
        if cls is BaseModel:
            continue
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
        for field, after in pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(after.value.value).split())  # type: ignore[union-attr]
    return found
