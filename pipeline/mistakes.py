"""Turn pydantic's validation errors into one line for whoever wrote the YAML: where, what, the nearest valid name.

This module knows pydantic's errors and the shape of settings; `pipeline.config` adds file and line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.document import KeyPath

MISSING = "is missing"
WORDS = {
    "string_type": "should be text",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "bool_type": "should be true or false",
    "list_type": "should be a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "should be a mapping of keys to values"),
}
"""Messages for pydantic's type errors, by error type."""


def nearest(name: object, valid: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or the valid names if none is close. Initials (`lr` for `learning_rate`), beginnings
    (`temp` for `temperature`) and longer names (`num_train_epochs` for `epochs`) count as close."""
    names = list(valid)
    words = str(name).split("_")
    short = [n for n in names if str(name) == "".join(word[:1] for word in n.split("_")) and "_" in n]
    ends = [n for n in names if len(words) > 1 and words[-len(n.split("_")) :] == n.split("_")]
    if same := short or sorted(ends, key=len, reverse=True):
        return f"; did you mean {same[0]!r}?"
    if close := difflib.get_close_matches(str(name), names, n=1, cutoff=0.55):
        return f"; did you mean {close[0]!r}?"
    begun = [n for n in names if len(str(name)) > 2 and n.startswith(str(name))]
    if len(begun) == 1:
        return f"; did you mean {begun[0]!r}?"
    return f"; valid: {', '.join(names)}" if names else ""


def mistake(error: ValidationError, settings: type[BaseModel], body: Any) -> tuple[KeyPath, str]:
    """The first mistake pydantic found in the settings ``body``: its location and a description."""
    first = _most_specific(error)
    location = _in_yaml(first["loc"], body)
    if first["type"] == "extra_forbidden":
        valid = _valid_keys(settings, first["loc"][:-1])
        if location[-1] in valid:  # a key of another variant of this mapping
            return location, "cannot be combined with the other keys here"
        name = str(location[-1])
        if meant := _elsewhere(settings, first["loc"][:-1], name, valid) or _nested(settings, first["loc"][:-1], name):
            return location, f"unknown key; did you mean {meant!r}?{_other_unknown_keys(error)}"
        return location, f"unknown key{nearest(name, valid)}{_other_unknown_keys(error)}"
    if first["type"].startswith("union_tag"):
        return _which_variant(first, location, settings)
    if first["type"] == "missing":  # name the key if the value was shorthand for a mapping (`engine: openai`)
        return location, MISSING if location[-1:] == first["loc"][-1:] else f"{first['loc'][-1]} {MISSING}"
    if first["type"] == "literal_error":
        expected = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return location, f"{first['input']!r} is not valid{nearest(first['input'], expected)}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    if first["type"] == "value_error":  # a message of ours, which names what it found
        return location, message
    if first["type"] == "too_short":
        return location, f"should hold at least {first['ctx']['min_length']}, holds {first['ctx']['actual_length']}"
    if first["type"] == "list_type" and isinstance(first["input"], str | int | float):
        return location, f"should be a list, found {first['input']!r}; write [{first['input']}]"
    message = WORDS.get(first["type"], message)
    return location, f"{message[0].lower()}{message[1:]}, found {first['input']!r}"


def _other_unknown_keys(error: ValidationError) -> str:
    """The other unknown keys beside the first: there are several if one stage was mistaken for another."""
    first, *others = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
    names = [str(loc[-1]) for loc in others if loc[:-1] == first[:-1]]
    return f" (unknown here too: {', '.join(names)})" if names else ""


def _most_specific(error: ValidationError) -> Any:
    """The first error. If the value may have several forms, prefer the error about the form that it has: a list that is
    too short is still a list."""
    first, *others = error.errors()
    if first["type"] == "missing":  # perhaps only misspelt: `techer: x` in place of `teacher: x`
        unknown = [e for e in others if e["type"] == "extra_forbidden" and e["loc"][:-1] == first["loc"][:-1]]
        return next((e for e in unknown if "mean" in nearest(e["loc"][-1], [str(first["loc"][-1])])), first)
    if first["type"] not in WORDS:
        return first
    place = len(first["loc"]) - 1  # the path of the value; what follows names one of its forms
    same = [
        e
        for e in others
        if (len(e["loc"]) > place + 1 or e["type"] == "too_short") and e["loc"][:place] == first["loc"][:place]
    ]
    return next((e for e in same if e["type"] not in WORDS), first)


def _in_yaml(location: Sequence[str | int], body: Any) -> tuple[str | int, ...]:
    """A location as the user wrote it: without what pydantic adds for variants and functions, and without what lies
    inside a value that is shorthand for a mapping."""
    kept: list[str | int] = []
    for part in location[:-1]:
        inner = _inside(body, part)
        if isinstance(inner, Mapping | list):
            kept.append(part)
            body = inner
        elif inner is not None:
            return (*kept, part)
    last = location[-1:]
    beside = isinstance(body, list) and not isinstance(location[-1], int)
    variant = isinstance(body, Mapping) and last and last[0] == body.get("kind") and last[0] not in body
    added = last and (beside or variant or str(last[0]).startswith(("function-", "literal[")))
    return tuple(kept) if added else (*kept, *last)


def _inside(body: Any, part: str | int) -> Any:
    if isinstance(body, Mapping):
        return body.get(part)
    return body[part] if isinstance(body, list) and isinstance(part, int) and part < len(body) else None


def _which_variant(error: Any, location: KeyPath, settings: type[BaseModel]) -> tuple[KeyPath, str]:
    """The mistake when the key that selects one of several mappings (`kind`) is missing or not valid. The keys beside
    it are not quoted: one may hold a secret that was put into the wrong place."""
    key, tag = str(error["ctx"]["discriminator"]).strip("'"), error["ctx"].get("tag")
    fields = [m.model_fields[key] for m in _models_at(settings, error["loc"]) if key in m.model_fields]
    names = [str(info.default) for info in fields]
    if tag is None:
        return (*location, key), f"{MISSING}; valid: {', '.join(names)}"
    return (*location, key), f"{tag!r} is not valid{nearest(tag, names)}"


def _valid_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that the settings allow at pydantic's ``path``; those of all variants if it does not select one."""
    keys = dict.fromkeys(key for m in _models_at(model, path) for key in m.model_fields)
    return [*keys, "kind"] if not path else list(keys)


def _elsewhere(model: type[BaseModel], path: Sequence[str | int], name: str, valid: Sequence[str]) -> str | None:
    """The key that another tool calls ``name``, if these settings list one."""
    known = [getattr(m, "ELSEWHERE", {}).get(name, "") for m in _models_at(model, path)]
    return next((key for key in known if key.partition(".")[0] in valid), None)


def _nested(model: type[BaseModel], path: Sequence[str | int], name: str) -> str | None:
    """``sampling.max_tokens`` for a ``max_tokens`` that belongs in a mapping beside it."""
    for outer in _models_at(model, path):
        for field, info in outer.model_fields.items():
            if any(name in inner.model_fields for inner in models_in(info.annotation)):
                return f"{field}.{name}"
    return None


def _models_at(model: type[BaseModel], path: Sequence[str | int]) -> list[type[BaseModel]]:
    models = [model]
    for part in path:
        annotations = [m.model_fields[str(part)].annotation for m in models if str(part) in m.model_fields]
        variant = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part]
        models = [found for annotation in annotations for found in models_in(annotation)] or variant or models
    return models


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in the type of a field, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in getattr(annotation, "__args__", ()) for m in models_in(inner)]
