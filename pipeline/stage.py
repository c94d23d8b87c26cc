"""What a stage is: settings, inputs, a run function, a forecast. Data, not a class hierarchy.

A stage module holds a `Settings` class, a `run` function and one `Stage` constant. The kernel finds
the inputs in the annotations of the settings. A field annotated with `Input` names the stage that feeds
this one; a field annotated with `Operational` changes speed, not results, and stays out of the
fingerprint. The run function gets a `Context` and returns an `Output`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field

from pipeline.document import KeyPath
from pipeline.errors import Stopped

if TYPE_CHECKING:
    from pipeline.fingerprint import FileHashes
    from pipeline.manifest import Manifest


class Settings(BaseModel):
    """Base of every stage's settings: strict types, no unknown keys, finite numbers, frozen.

    A field called ``seed`` left unset takes the pipeline's seed; one called ``limit`` is what
    ``--limit`` sets.
    """

    ELSEWHERE: ClassVar[Mapping[str, str]] = {}
    """Names that other tools use for keys of these settings: an error about such a name suggests ours."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, defer_build=True)


@dataclass(frozen=True, slots=True)
class Input:
    """Marks a setting that names the stage (or a list or mapping of stages) feeding this one.

    ``accepts`` lists the kinds of output that fit. With a ``prefix``, only values that start with it are stage names
    (``stage:sft``), at any depth of plain data; the others mean something to the domain (a path, a hub id). With
    ``figures``, the stage also reads the figures of that output, so it runs again when they change.
    """

    accepts: tuple[str, ...]
    prefix: str = ""
    figures: bool = False


@dataclass(frozen=True, slots=True)
class File:
    """Marks a setting that is a path whose content the result depends on."""


@dataclass(frozen=True, slots=True)
class Operational:
    """Marks a setting that changes speed, memory or logging, but not the result."""


def later(default: Any = None, **constraints: Any) -> Any:
    """The default of a setting that was added after its stage was released. Left at the default, the setting stays out
    of the fingerprint, so that earlier results stay cached."""
    return Field(default, exclude_if=lambda value: value == default, **constraints)


@dataclass(frozen=True, slots=True)
class Output:
    """What a run made. ``digest`` identifies its content: equal digests re-run nothing downstream.

    ``figures`` are for people, forecasts and reports.
    """

    digest: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a stage still has to do: ``done`` of ``total`` ``unit`` exist already.

    ``figures`` hold what is known in advance: ``calls``, ``tokens`` (an upper bound), ``cost``.
    """

    unit: str
    total: int | None = None
    done: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)


class Context(Protocol):
    """What a running (or forecast) stage may know and use. Made by `pipeline.workspace`."""

    name: str
    kind: str
    fingerprint: str
    workspace: Path
    inputs: Mapping[str, Manifest]
    """Manifests of the upstream stages, by stage name."""
    artifact: Path
    """Where `publish` puts the finished artifact."""
    work: Path
    """A private directory that survives a crash: checkpoints and parts under construction."""
    hashes: FileHashes

    def stopping(self) -> bool:
        """True once the run has been asked to stop (SIGTERM, Ctrl-C, --max-time)."""

    def progress(self, done: int, total: int | None, **figures: Any) -> None:
        """Report progress; cheap to call often."""

    def note(self, text: str) -> None:
        """Show the user one line."""

    def publish(self, built: Path) -> str:
        """Make ``built`` (a directory under `work`) the artifact; returns its content hash."""


RunFunction = Callable[[Any, Any], Output]


@dataclass(frozen=True, slots=True)
class Stage:
    """One kind of stage. ``version`` goes up whenever the same settings would give another result."""

    kind: str
    about: str
    settings: type[Settings]
    produces: str
    run: RunFunction
    version: int = 1
    forecast: Callable[[Any, Any, Mapping[str, Mapping[str, Any]]], Forecast] | None = None
    """``(context, settings, figures of upstream stages by name) -> Forecast``; must be cheap."""
    dependencies: Callable[[Any, FileHashes, Mapping[str, Manifest]], Mapping[str, str]] | None = None
    """``(settings, hashes, manifests of upstream stages by name) -> {name: content hash}`` of what is read
    beyond inputs and `File`s."""
    refuse: Callable[[Any, Mapping[str, Mapping[str, Any]]], str | None] | None = None
    """``(settings, figures of upstream stages by name) -> why this stage cannot run``, or None. The figures are those
    of complete stages, and upper bounds for stages that have no input or that narrow such a stage. Asked before any
    stage runs, so that nothing is made and paid for in vain."""
    check: Callable[[Any, Any], str | None] | None = None
    """``(context, manifest) -> why the output is not whole (any more)``, or None. Also asked before an output is
    recorded."""
    narrows: bool = False
    """Whether the stage makes a part of what it reads: its forecast is an upper bound if those of its inputs are."""
    again: Callable[[Manifest], str | None] | None = None
    """``manifest -> why a whole output should be made again``, or None: for instance, a part of it failed and may
    succeed now. Asked when the next run is planned."""
    links: tuple[str, ...] = ()
    """Files of the artifact that the top of the workspace links to, by the stage's name and their suffix."""


def marked(value: Any, marker: type, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any, Any]]:
    """All settings annotated with ``marker``, however deep: (path, the marker, the value)."""
    if isinstance(value, BaseModel):
        for name, info in type(value).model_fields.items():
            inner = getattr(value, name)
            for mark in info.metadata:
                if isinstance(mark, marker):
                    yield (*path, name), mark, inner
            yield from marked(inner, marker, (*path, name))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from marked(inner, marker, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from marked(inner, marker, (*path, index))


def references(settings: BaseModel) -> Iterator[tuple[KeyPath, Input, str]]:
    """Every stage name in ``settings``: (path, the Input marker, the upstream stage's name)."""
    for path, mark, value in marked(settings, Input):
        for where, item in _strings(path, value, deep=bool(mark.prefix)):
            if item.startswith(mark.prefix):
                yield where, mark, item.removeprefix(mark.prefix)


def _strings(path: KeyPath, value: Any, deep: bool) -> Iterator[tuple[KeyPath, str]]:
    """The strings in a setting's value: it or its items, or with ``deep`` those at any depth (where a prefix marks
    stage names)."""
    inner: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, (list, tuple)):
        inner = enumerate(value)
    for key, item in inner:
        if isinstance(item, str) or deep:
            yield from _strings((*path, key), item, deep)


def result_settings(settings: BaseModel) -> dict[str, Any]:
    """The settings that change the result, as plain data, without operational ones.

    Stage names and file names are blanked: only their content counts, which the identity holds as
    digests and hashes.
    """
    data = settings.model_dump(mode="json", warnings=False)
    for path, _, _ in marked(settings, Operational):
        _parent(data, path).pop(path[-1], None)
    for path in [*(p for p, _, _ in references(settings)), *(p for p, _, _ in marked(settings, File))]:
        _parent(data, path)[path[-1]] = None
    return data


def _parent(data: Any, path: KeyPath) -> Any:
    for key in path[:-1]:
        data = data[key]
    return data


def stop_check(stopping: Callable[[], bool]) -> None:
    """Raise `Stopped` if the run has been asked to stop; call where stopping is safe."""
    if stopping():
        raise Stopped("stopped cleanly; run the same command again to continue")
