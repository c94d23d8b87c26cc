"""From a YAML file to a checked pipeline: the wish, before anything has run.

Strict on purpose: an unknown key, a wrong type, a missing file, a cycle, a stage that nothing feeds
is one line with file, line, key and the nearest valid name. What kinds of stages there are is the
caller's: it passes a lookup (`distill.catalog.stage`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.document import Document, KeyPath, parse_value, read
from pipeline.errors import InputError
from pipeline.stage import File, Input, Settings, Stage, marked, references

TOP_KEYS = ("name", "workspace", "seed", "stages")
MISSING = "is missing"
StageLookup = Callable[[str], Stage]


@dataclass(frozen=True)
class StageSpec:
    """One stage as wished for: its name in the YAML, its kind, its checked settings."""

    name: str
    stage: Stage
    settings: Settings

    @property
    def upstream(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, _, name in references(self.settings)))


@dataclass(frozen=True)
class PipelineSpec:
    name: str
    file: Path
    workspace: Path
    seed: int
    stages: Mapping[str, StageSpec]
    """In an order in which each stage comes after those that feed it."""

    def closure(self, targets: Sequence[str]) -> list[StageSpec]:
        """The named stages and all that they need, in running order; all stages for no target."""
        for target in targets:
            if target not in self.stages:
                raise InputError(f"{self.file}: no stage is called {target!r}{nearest(target, self.stages)}")
        wanted = set(targets) or set(self.stages)
        for name in reversed(list(self.stages)):
            if name in wanted:
                wanted.update(self.stages[name].upstream)
        return [spec for name, spec in self.stages.items() if name in wanted]


def nearest(name: object, valid: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or the valid names where none is near."""
    names = list(valid)
    if close := difflib.get_close_matches(str(name), names, n=1, cutoff=0.55):
        return f"; did you mean {close[0]!r}?"
    return f"; valid: {', '.join(names)}" if names else ""


def load(
    path: Path,
    lookup: StageLookup,
    *,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    workspace: Path | None = None,
) -> PipelineSpec:
    """Read and check a pipeline. ``overrides`` are ``stage.key=value`` texts, as for ``--set``."""
    document = read(path)
    _apply_overrides(document, overrides)
    data = document.data
    for key in data:
        if key not in TOP_KEYS:
            raise InputError(f"{document.where((key,))}: unknown key{nearest(key, TOP_KEYS)}")
    name = _top(document, "name", str, path.stem)
    if "/" in name or name in ("", ".", ".."):
        raise InputError(f"{document.where(('name',))}: {name!r} cannot name a directory; `workspace` takes a path")
    seed = _top(document, "seed", int, 0)
    space = workspace or Path(_top(document, "workspace", str, f"runs/{name}"))
    stages = _top(document, "stages", dict, None)
    if not stages:
        raise InputError(f"{document.where(('stages',))}: holds no stage")
    specs = {key: _stage(document, key, body, lookup, seed, limit) for key, body in stages.items()}
    return PipelineSpec(name, path, space, seed, _ordered(document, specs))


def _top(document: Document, key: str, kind: type, default: Any) -> Any:
    value = document.data.get(key, default)
    if value is None:
        raise InputError(f"{document.where((key,))}: is missing")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{document.where((key,))}: expected {_words(kind)}, found {value!r}")
    return value


def _words(kind: type) -> str:
    return {str: "text", int: "a whole number", dict: "a mapping"}.get(kind, kind.__name__)


def _stage(document: Document, name: Any, body: Any, lookup: StageLookup, seed: int, limit: int | None) -> StageSpec:
    where: KeyPath = ("stages", name)
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"{document.where(where)}: a stage's name is made of letters, digits, - and _")
    body = {} if body is None else body
    if not isinstance(body, dict):
        raise InputError(f"{document.where(where)}: expected a mapping of settings, found {body!r}")
    body = dict(body)
    kind = body.pop("kind", name)
    try:
        stage = lookup(str(kind))
    except InputError as error:
        at = (*where, "kind") if (*where, "kind") in document.lines else where
        raise InputError(f"{document.where(at)}: {error}") from None
    fields = stage.settings.model_fields
    if "seed" in fields:
        body.setdefault("seed", seed)
    if limit is not None and "limit" in fields:
        body["limit"] = limit
    try:
        settings = stage.settings.model_validate(body)
    except ValidationError as error:
        raise InputError(_explain(error, document, where, stage)) from None
    for path, _, value in marked(settings, File):
        for file in [value] if isinstance(value, str) else value or []:
            if not Path(file).exists():
                raise InputError(f"{document.where((*where, *path))}: {file}: no such file{_looked_in(file)}")
    return StageSpec(name, stage, settings)


def _looked_in(file: str) -> str:
    return "" if Path(file).is_absolute() else f" (looked in {Path.cwd()})"


def _explain(error: ValidationError, document: Document, where: KeyPath, stage: Stage) -> str:
    """The first mistake pydantic found, as one line a user can act on."""
    location, what = mistake(error, stage.settings, document.get(where))
    feeds = _what_feeds(stage, str(location[-1]), document) if what == MISSING else ""
    return f"{document.where((*where, *location))}: {what}{feeds}"


def mistake(error: ValidationError, settings: type[BaseModel], body: Any) -> tuple[KeyPath, str]:
    """The first mistake pydantic found in the settings ``body``: where it is, and what it is in words."""
    first = error.errors()[0]
    location = _in_yaml(first["loc"], body)
    if first["type"] == "extra_forbidden":
        return location, f"unknown key{nearest(location[-1], _valid_keys(settings, first['loc'][:-1]))}"
    if first["type"].startswith("union_tag"):
        return _which_variant(first, location, settings)
    if first["type"] == "missing":
        return location, MISSING
    if first["type"] == "literal_error":
        expected = first["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return location, f"{first['input']!r} is not valid{nearest(first['input'], expected)}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    if first["type"] == "value_error":  # one of our own, which says what it found
        return location, message
    return location, f"{message[0].lower()}{message[1:]}, found {first['input']!r}"


def _in_yaml(location: Sequence[str | int], body: Any) -> tuple[str | int, ...]:
    """A place as the user wrote it: without what pydantic adds for variants and functions, nor what lies inside
    of a value that is short for a mapping."""
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
    """A key (`kind`) that says which of several mappings is meant is missing or none of theirs. What stands beside
    it is not repeated: it may hold a secret that was put into the wrong place."""
    key, tag = str(error["ctx"]["discriminator"]).strip("'"), error["ctx"].get("tag")
    fields = [m.model_fields[key] for m in _models_at(settings, error["loc"]) if key in m.model_fields]
    names = [str(info.default) for info in fields]
    if tag is None:
        return (*location, key), f"{MISSING}; valid: {', '.join(names)}"
    return (*location, key), f"{tag!r} is not valid{nearest(tag, names)}"


def _valid_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that the settings allow at pydantic's ``path``; of all variants where it does not say which."""
    keys = dict.fromkeys(key for m in _models_at(model, path) for key in m.model_fields)
    return [*keys, "kind"] if not path else list(keys)


def _models_at(model: type[BaseModel], path: Sequence[str | int]) -> list[type[BaseModel]]:
    models = [model]
    for part in path:
        annotations = [m.model_fields[str(part)].annotation for m in models if str(part) in m.model_fields]
        variant = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part]
        models = [found for annotation in annotations for found in _models_in(annotation)] or variant or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in getattr(annotation, "__args__", ()) for m in _models_in(inner)]


def _what_feeds(stage: Stage, field: str, document: Document) -> str:
    info = stage.settings.model_fields.get(field)
    for mark in info.metadata if info else ():
        if isinstance(mark, Input):
            return f": nothing feeds this stage; name one that makes {' or '.join(mark.accepts)}"
    return ""


def _ordered(document: Document, specs: dict[str, StageSpec]) -> dict[str, StageSpec]:
    """Check who feeds whom, and sort."""
    for name, spec in specs.items():
        for path, mark, upstream in references(spec.settings):
            at = document.where(("stages", name, *path))
            if upstream not in specs:
                valid = [n for n, s in specs.items() if s.stage.produces in mark.accepts]
                raise InputError(f"{at}: no stage is called {upstream!r}{nearest(upstream, valid)}")
            makes = specs[upstream].stage.produces
            if makes not in mark.accepts:
                raise InputError(f"{at}: stage {upstream!r} makes {makes}; needed: {' or '.join(mark.accepts)}")
    graph = {name: spec.upstream for name, spec in specs.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        loop = error.args[1][::-1]
        raise InputError(
            f"{document.where(('stages', loop[0]))}: stages feed each other in a circle: {' -> '.join(loop)}"
        ) from None
    # The order of the file where it is a valid one, for that is what the user expects to see.
    position = {name: index for index, name in enumerate(specs)}
    if all(position[up] < position[name] for name in specs for up in graph[name]):
        order = list(specs)
    return {name: specs[name] for name in order}


def _apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """``sft.lora.rank=16`` sets a stage's key; ``seed=1`` and ``workspace=...`` a top one."""
    for text in overrides:
        document.said[tuple(text.partition("=")[0].split("."))] = text
        key, equals, value = text.partition("=")
        path = tuple(key.split("."))
        if not equals or not all(path):
            raise InputError(f"--set {text}: expected stage.key=value, for example generate.samples=8")
        if path[0] not in TOP_KEYS:
            stages = document.data.get("stages")
            if not isinstance(stages, dict) or path[0] not in stages:
                raise InputError(f"--set {text}: no stage is called {path[0]!r}{nearest(path[0], stages or ())}")
            path = ("stages", *path)
        target: Any = document.data
        for part in path[:-1]:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                raise InputError(f"--set {text}: {part!r} holds a single value, not keys")
        try:
            target[path[-1]] = parse_value(value)
        except InputError as error:
            raise InputError(f"--set {key}={error}") from None
