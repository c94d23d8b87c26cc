"""Load a pipeline from a YAML file and check it before anything runs.

Strict on purpose: an unknown key, a wrong type, a missing file, a cycle or a stage without input is
reported on one line with file, line, key and the nearest valid name. The caller decides which kinds of
stages exist: it passes a lookup (`distill.catalog.stage`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.document import Document, KeyPath, parse_value, read
from pipeline.errors import InputError
from pipeline.mistakes import MISSING, mistake, nearest
from pipeline.stage import File, Input, Settings, Stage, marked, references

TOP_KEYS = ("name", "workspace", "seed", "stages")
STAGE_NAME = re.compile(r"\w[\w-]{0,99}")
StageLookup = Callable[[str], Stage]


@dataclass(frozen=True)
class StageSpec:
    """One stage of a pipeline: its name in the YAML, its kind, its checked settings."""

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
    """Ordered so that each stage comes after the stages that feed it."""

    def closure(self, targets: Sequence[str]) -> list[StageSpec]:
        """The named stages and all that they need, in running order; all stages if none is named."""
        for target in targets:
            if target not in self.stages:
                raise InputError(f"{self.file}: no stage is called {target!r}{nearest(target, self.stages)}")
        wanted = set(targets) or set(self.stages)
        for name in reversed(list(self.stages)):
            if name in wanted:
                wanted.update(self.stages[name].upstream)
        return [spec for name, spec in self.stages.items() if name in wanted]


def load(
    path: Path,
    lookup: StageLookup,
    *,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    workspace: Path | None = None,
) -> PipelineSpec:
    """Read and check a pipeline. ``overrides`` are ``stage.key=value`` strings, as for ``--set``."""
    document = read(path)
    _apply_overrides(document, overrides)
    data = document.data
    for key in data:
        if key not in TOP_KEYS:
            raise InputError(f"{document.where((key,))}: unknown key{nearest(key, TOP_KEYS)}")
    name = _top(document, "name", str, path.stem)
    if "/" in name or name in ("", ".", ".."):
        raise InputError(f"{document.where(('name',))}: {name!r} cannot be a directory name; `workspace` takes a path")
    seed = _top(document, "seed", int, 0)
    space = workspace or _workspace(document, name)
    stages = _top(document, "stages", dict, None)
    if not stages:
        raise InputError(f"{document.where(('stages',))}: has no stages; add at least one")
    specs = {key: _stage(document, key, body, lookup, seed, limit) for key, body in stages.items()}
    return PipelineSpec(name, path, space, seed, _ordered(document, specs))


def _top(document: Document, key: str, kind: type, default: Any) -> Any:
    value = document.data.get(key, default)
    if value is None:
        raise InputError(f"{document.where((key,))}: is missing")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{document.where((key,))}: expected {_type_name(kind)}, found {value!r}")
    return value


def _workspace(document: Document, name: str) -> Path:
    """The directory for results: ``runs/NAME`` unless the file sets one. ``~`` is the home directory."""
    if not name.isprintable() or not name.strip(". "):
        raise InputError(f"{document.where(('name',))}: {name!r} cannot be a directory name under runs/")
    place = _top(document, "workspace", str, f"runs/{name}")
    if not place.isprintable() or not place.strip():
        raise InputError(f"{document.where(('workspace',))}: {place!r} cannot be a directory name")
    return Path(os.path.expanduser(place))


def _type_name(kind: type) -> str:
    return {str: "text", int: "a whole number", dict: "a mapping"}.get(kind, kind.__name__)


def _stage(document: Document, name: Any, body: Any, lookup: StageLookup, seed: int, limit: int | None) -> StageSpec:
    where: KeyPath = ("stages", name)
    if not isinstance(name, str) or not STAGE_NAME.fullmatch(name):
        raise InputError(f"{document.where(where)}: a stage name has only letters, digits, - and _ (at most 100)")
    body = {} if body is None else body
    if not isinstance(body, dict):
        raise InputError(f"{document.where(where)}: expected a mapping of settings, found {body!r}")
    given = dict(body)
    kind = given.pop("kind", None)
    try:
        stage = lookup(str(kind or name))
    except InputError as error:
        at = (*where, "kind") if kind else where
        hint = "" if kind else "; to give a stage a name of your own, set its `kind`"
        raise InputError(f"{document.where(at)}: {error}{hint}") from None
    fields = stage.settings.model_fields
    if "seed" in fields:
        given.setdefault("seed", seed)
    if limit is not None and "limit" in fields:
        given["limit"] = limit
    try:
        settings = stage.settings.model_validate(given)
    except ValidationError as error:
        raise InputError(_explain(error, document, where, stage, body)) from None
    for path, _, value in marked(settings, File):
        for file in [value] if isinstance(value, str) else value or []:
            if not Path(file).is_file():
                what = "is not a file" if Path(file).exists() else f"no such file{_looked_in(file)}"
                raise InputError(f"{document.where((*where, *path))}: {file}: {what}")
    return StageSpec(name, stage, settings)


def _looked_in(file: str) -> str:
    return "" if Path(file).is_absolute() else f" (looked in {Path.cwd()})"


def _explain(error: ValidationError, document: Document, where: KeyPath, stage: Stage, body: Any) -> str:
    """The first mistake pydantic found, as one line a user can act on."""
    location, what = mistake(error, stage.settings, body)
    feeds = _feeding_hint(stage, str(location[-1])) if what == MISSING else ""
    place = document.where((*where, *location))
    if what.startswith(MISSING) and place.startswith("--set "):  # it names what was set, not the missing key
        what = f"{location[-1]} {what}"
    return f"{place}: {what}{feeds}"


def _feeding_hint(stage: Stage, field: str) -> str:
    info = stage.settings.model_fields.get(field)
    for mark in info.metadata if info else ():
        if isinstance(mark, Input):
            makes = " or ".join(mark.accepts)
            if mark.prefix:
                return f": give a name, or {mark.prefix}NAME of a stage that makes {makes}"
            return f": nothing feeds this stage; name one that makes {makes}"
    return ""


def _ordered(document: Document, specs: dict[str, StageSpec]) -> dict[str, StageSpec]:
    """Check the references between stages, and sort the stages topologically."""
    for name, spec in specs.items():
        for path, mark, upstream in references(spec.settings):
            at = document.where(("stages", name, *path))
            valid = [n for n, s in specs.items() if s.stage.produces in mark.accepts and n != name]
            if upstream not in specs:
                raise InputError(f"{at}: no stage is called {upstream!r}{nearest(upstream, valid)}")
            makes = specs[upstream].stage.produces
            if makes not in mark.accepts:
                who = f"made by {', '.join(valid)}" if valid else "which no stage here makes (`distill list stages`)"
                needed = " or ".join(mark.accepts)
                raise InputError(f"{at}: stage {upstream!r} makes {makes}; needed: {needed}, {who}")
    graph = {name: spec.upstream for name, spec in specs.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        loop = error.args[1][::-1]
        raise InputError(
            f"{document.where(('stages', loop[0]))}: stages feed each other in a cycle: {' -> '.join(loop)}"
        ) from None
    # Keep the file's order where it is valid: that is what the user expects to see.
    position = {name: index for index, name in enumerate(specs)}
    if all(position[up] < position[name] for name in specs for up in graph[name]):
        order = list(specs)
    return {name: specs[name] for name in order}


def _apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """``sft.lora.rank=16`` sets a stage's key; ``seed=1`` and ``workspace=...`` a top one."""
    for text in overrides:
        key, equals, value = text.partition("=")
        path = tuple(key.split("."))
        document.overrides[path] = text
        if not equals or not all(path):
            raise InputError(f"--set {text}: expected stage.key=value, for example generate.samples=8")
        if path[0] not in TOP_KEYS:
            stages = document.data.get("stages")
            if not isinstance(stages, dict) or path[0] not in stages:
                raise InputError(f"--set {text}: no stage is called {path[0]!r}{nearest(path[0], stages or ())}")
            path = ("stages", *path)
        target, last = _container(document.data, path, text)
        try:
            target[last] = parse_value(value)
        except InputError as error:
            raise InputError(f"--set {key}={error}") from None


def _container(data: Any, path: Sequence[str], text: str) -> tuple[Any, str | int]:
    """The container of the value at ``path``, and the value's key in it; list items are addressed by index. Containers
    along the path are copied, so that a value shared through a YAML alias changes in one place only."""
    for index, part in enumerate(path):
        if isinstance(data, list):
            if not part.isdecimal() or int(part) >= len(data):
                raise InputError(f"--set {text}: a list of {len(data)} items has no item {part!r}, counting from 0")
        elif not isinstance(data, dict):
            raise InputError(f"--set {text}: {path[index - 1]!r} holds a single value, not keys")
        where = int(part) if isinstance(data, list) else part
        if index == len(path) - 1:
            return data, where
        inner = data.get(where) if isinstance(data, dict) else data[where]
        data[where] = {} if inner is None else copy(inner)
        data = data[where]
    raise AssertionError("a path has parts")
