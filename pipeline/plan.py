"""Compare a pipeline with the record: each stage is cached, partly done or will run, and why.

`identify` is the single place where a stage's identity is put together. `examine` compares it with the
record: the runner calls it just before a stage would run, `distill plan` for all stages without running any.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pipeline import manifest as manifests
from pipeline.config import PipelineSpec, StageSpec
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes, content_hash, differences
from pipeline.manifest import Identity, Manifest
from pipeline.stage import File, Forecast, Input, marked, references, result_settings

if TYPE_CHECKING:
    from pipeline.workspace import Workspace


class Status(StrEnum):
    CACHED = "cached"
    PARTIAL = "partly done"
    RUN = "will run"


NEVER = ("never run",)


@dataclass(frozen=True)
class StagePlan:
    """The state of one stage. ``identity`` is None while an input has yet to be made."""

    spec: StageSpec
    status: Status
    reasons: tuple[str, ...]
    identity: Identity | None = None
    manifest: Manifest | None = None
    forecast: Forecast | None = None
    last_seconds: float | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Those of the manifest, or else those of the forecast, as far as they are known."""
    counts: bool = False
    """Whether ``figures`` are an upper bound on what the stage makes."""


def identify(spec: StageSpec, upstream: Mapping[str, Manifest], hashes: FileHashes) -> Identity:
    """Everything that the stage's result depends on, hashed as it is now."""
    inputs = {".".join(map(str, path)): _content(upstream[n], mark) for path, mark, n in references(spec.settings)}
    files: dict[str, str] = {}
    for path, _, value in marked(spec.settings, File):
        names = [value] if isinstance(value, str) else list(value or [])
        files |= {f"{'.'.join(map(str, path))}[{index}]": hashes.of(name) for index, name in enumerate(names)}
    if spec.stage.dependencies:
        files |= spec.stage.dependencies(spec.settings, hashes, upstream)
    return Identity(spec.stage.kind, spec.stage.version, result_settings(spec.settings), inputs, files)


def _content(output: Manifest, mark: Input) -> str:
    return content_hash([output.digest, output.figures]) if mark.figures else output.digest


def examine(
    spec: StageSpec, upstream: Mapping[str, StagePlan], workspace: Workspace, forced: bool = False
) -> StagePlan:
    """The state of one stage. ``upstream`` holds the plans of the stages that feed it, by name."""
    missing = [name for name in spec.upstream if upstream[name].manifest is None]
    if missing:
        waits = f"waits for {', '.join(missing)}"
        return replace(
            _to_run(spec, workspace, upstream), reasons=(waits,), last_seconds=_last_seconds(spec, workspace)
        )
    inputs = {name: plan.manifest for name, plan in upstream.items() if plan.manifest}
    identity = identify(spec, inputs, workspace.hashes)
    found = manifests.find(workspace.path, identity)
    if found and not forced:
        why = _why_remake(spec, found, inputs, workspace)
        if why is None:
            return complete(spec, found)
        reasons: tuple[str, ...] = (why,)
    else:
        reasons = ("--force",) if forced else explain(spec, identity, workspace)
    planned = _to_run(spec, workspace, upstream, identity)
    forecast = planned.forecast
    begun = bool(forecast and forecast.done) or workspace.has_part(identity)
    if forecast and forecast.done and reasons == NEVER:
        reasons = ("never run, but a part exists already",)
    status = Status.PARTIAL if begun else Status.RUN
    return replace(planned, status=status, reasons=reasons, last_seconds=_last_seconds(spec, workspace))


def _why_remake(spec: StageSpec, found: Manifest, inputs: Mapping[str, Manifest], workspace: Workspace) -> str | None:
    """Why a recorded result is made again nevertheless: it is no longer whole, or a part of it failed."""
    return workspace.lost(spec, found, inputs) or (spec.stage.again(found) if spec.stage.again else None)


def complete(spec: StageSpec, manifest: Manifest) -> StagePlan:
    manifest = replace(manifest, stage=spec.name)  # it may have been made by a stage of another name
    return StagePlan(spec, Status.CACHED, (), manifest.identity, manifest, figures=manifest.figures, counts=True)


def at_most(specs: Iterable[StageSpec], known: Mapping[str, StagePlan], workspace: Workspace) -> dict[str, StagePlan]:
    """``known``, extended by upper bounds on what ``specs`` (in running order) will make, for stages that have no input
    or that narrow inputs with known bounds. Does not look whether their results exist already."""
    found = dict(known)
    for spec in specs:
        if (spec.name not in found and not spec.upstream) or _narrows(spec, found):
            found[spec.name] = _to_run(spec, workspace, found)
    return found


def _narrows(spec: StageSpec, plans: Mapping[str, StagePlan]) -> bool:
    return spec.stage.narrows and all(name in plans and plans[name].counts for name in spec.upstream)


def _to_run(
    spec: StageSpec, workspace: Workspace, upstream: Mapping[str, StagePlan], identity: Identity | None = None
) -> StagePlan:
    """The plan of a stage that has to run, with the figures of its forecast."""
    forecast, figures = None, dict[str, Any]()
    if spec.stage.forecast:
        inputs = {n: made for n in spec.upstream if identity and (made := upstream[n].manifest)}
        context = workspace.context(spec, identity.fingerprint if identity else "", inputs)
        forecast = spec.stage.forecast(context, spec.settings, {n: upstream[n].figures for n in spec.upstream})
        figures = {**({} if forecast.total is None else {forecast.unit: forecast.total}), **forecast.figures}
    bounded = not spec.upstream or _narrows(spec, upstream)
    counts = bool(bounded and forecast and forecast.total)  # a stage that will make nothing reports that itself
    return StagePlan(spec, Status.RUN, (), identity, None, forecast, figures=figures, counts=counts)


def incomplete(
    specs: Iterable[StageSpec], plans: Mapping[str, StagePlan], workspace: Workspace, force: Container[str],
    whole: dict[str, bool],
) -> Iterator[StageSpec]:  # fmt: skip
    """Those of ``specs`` that are forced, have no whole result on record, or are fed by such a stage. ``whole`` caches,
    by fingerprint, whether a recorded result is whole."""
    made = {name: plan.manifest for name, plan in plans.items() if plan.manifest}
    for spec in specs:
        if spec.name in force or not (found := _on_record(spec, made, workspace, whole)):
            yield spec
        else:
            made[spec.name] = found


def _on_record(
    spec: StageSpec, made: Mapping[str, Manifest], workspace: Workspace, whole: dict[str, bool]
) -> Manifest | None:
    if any(name not in made for name in spec.upstream):
        return None
    inputs = {name: made[name] for name in spec.upstream}
    found = manifests.find(workspace.path, identify(spec, inputs, workspace.hashes))
    if found and found.fingerprint not in whole:
        whole[found.fingerprint] = _why_remake(spec, found, inputs, workspace) is None
    return found if found and whole[found.fingerprint] else None


def plan(
    pipeline: PipelineSpec, workspace: Workspace, targets: Sequence[str] = (), force: Sequence[str] = ()
) -> list[StagePlan]:
    """Every stage that the targets need, in running order."""
    plans: dict[str, StagePlan] = {}
    for spec in pipeline.closure(targets):
        upstream = {name: plans[name] for name in spec.upstream}
        plans[spec.name] = examine(spec, upstream, workspace, spec.name in force)
    return list(plans.values())


def explain(spec: StageSpec, identity: Identity, workspace: Workspace) -> tuple[str, ...]:
    """Which input changed since this stage last completed."""
    if earlier := manifests.newest(workspace.path, identity.kind, spec.name):
        return tuple(changes(earlier.identity, identity)) or ("its record was removed",)
    return ("never finished",) if workspace.begun(identity) else NEVER


def changes(old: Identity, new: Identity) -> list[str]:
    """The differences between two identities, one line each."""
    lines = [f"stage version: {old.version} -> {new.version}"] if old.version != new.version else []
    lines += differences(old.settings, new.settings)
    lines += _changed_keys(old.inputs, new.inputs, "input {}", "input {} changed")
    return [*lines, *_changed_keys(old.files, new.files, "{}", "content of {} changed")]


def _changed_keys(old: Mapping[str, str], new: Mapping[str, str], named: str, changed: str) -> Iterator[str]:
    """One line for each key whose hash changed, or that was added or removed."""
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            text = changed if key in old and key in new else f"{named} is {'new' if key in new else 'no longer read'}"
            yield text.format(key)


def _last_seconds(spec: StageSpec, workspace: Workspace) -> float | None:
    earlier = manifests.newest(workspace.path, spec.stage.kind, spec.name)
    return earlier.seconds if earlier else None


def foresee(specs: Iterable[StageSpec], plans: Mapping[str, StagePlan]) -> None:
    """Raise `InputError` if a stage is known to be impossible already, from its settings and its inputs' figures."""
    for spec in specs:
        if spec.stage.refuse:
            figures = {n: plans[n].figures for n in spec.upstream if n in plans and plans[n].counts}
            if why := spec.stage.refuse(spec.settings, figures):
                raise InputError(f"stage {spec.name}: {why}")
