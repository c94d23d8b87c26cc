"""Run what is missing, in order, and write each stage's manifest last.

Resuming has no code path of its own: a stage is run again and makes what is not there. The listener
(`pipeline.events`) and when to stop (`pipeline.stopping`) are arguments; the caller holds the workspace
(`pipeline.lock`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline import manifest as manifests
from pipeline.config import PipelineSpec, StageSpec
from pipeline.errors import PipelineError
from pipeline.events import Listener
from pipeline.files import link, link_place, make_directory
from pipeline.manifest import Identity, Manifest
from pipeline.plan import StagePlan, at_most, complete, examine, foresee, identify, incomplete
from pipeline.stage import stop_check
from pipeline.workspace import Clock, Workspace


class Done(NamedTuple):
    """A stage that is up to date, and whether it already was."""

    manifest: Manifest
    cached: bool


def run(
    pipeline: PipelineSpec,
    workspace: Workspace,
    listener: Listener,
    stopping: Callable[[], bool],
    targets: Sequence[str] = (),
    force: Sequence[str] = (),
) -> list[Done]:
    """Bring the targets (all stages if there are none) up to date. Returns each stage's manifest in running order, and
    whether it was cached."""
    specs = pipeline.closure(targets)
    plans: dict[str, StagePlan] = {}
    ahead: dict[str, StagePlan] = {}
    whole: dict[str, bool] = {}
    done: dict[str, Done] = {}
    workspace.make()
    for spec in specs:
        for name in _links(spec):
            link_place(workspace.path / name)
    listener.begin([spec.name for spec in specs])
    for spec in specs:
        workspace.hashes.note = partial(listener.note, spec.name)
        found = examine(spec, {name: plans[name] for name in spec.upstream}, workspace, spec.name in force)
        workspace.hashes.save()  # after a kill, do not read again what took minutes
        manifest, cached = found.manifest, found.manifest is not None
        if manifest:
            listener.cached(spec.name, manifest)
        else:
            stop_check(stopping)
            left = [s for s in specs if s.name not in plans]
            ahead = at_most(left, ahead | plans, workspace)
            foresee([spec, *incomplete(left[1:], plans, workspace, force, whole)], ahead)
            inputs = {name: done[name].manifest for name in spec.upstream}
            manifest = _run_stage(found, inputs, workspace, listener, stopping, spec.name in force)
        plans[spec.name] = complete(spec, manifest)
        done[spec.name] = Done(manifest, cached)
        _link(spec, manifest, workspace)
        manifests.stand(workspace.path, spec.name, manifest)
        workspace.hashes.save()
    return list(done.values())


def _run_stage(
    found: StagePlan,
    inputs: Mapping[str, Manifest],
    workspace: Workspace,
    listener: Listener,
    stopping: Callable[[], bool],
    forced: bool,
) -> Manifest:
    spec, identity = found.spec, found.identity
    assert identity is not None  # all inputs are complete by now
    work = workspace.work(identity.kind, identity.fingerprint)
    if forced:
        _discard(workspace, identity)
    make_directory(work)
    clock = Clock.resume(workspace.heartbeat(identity))
    context = workspace.context(spec, identity.fingerprint, inputs, stopping=stopping, listener=listener, _clock=clock)
    listener.start(spec.name, found)
    clock.beat()  # `status` sees that the stage runs even before it reports progress
    output = spec.stage.run(context, spec.settings)
    _check_unchanged(spec, identity, inputs, workspace)
    manifest = Manifest(
        stage=spec.name,
        fingerprint=identity.fingerprint,
        identity=identity,
        digest=output.digest,
        figures=dict(output.figures),
        seconds=round(clock.seconds, 3),
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        artifact=str(context.artifact.relative_to(workspace.path)) if context.published is not None else None,
        files=context.published or {},
        software=workspace.software,
    )
    if lacking := workspace.lost(spec, manifest, inputs):
        raise PipelineError(f"stage {spec.name}: its result is incomplete and was not recorded: {lacking}")
    manifests.write(workspace.path, manifest)
    shutil.rmtree(work, ignore_errors=True)
    listener.finish(spec.name, manifest)
    return manifest


def _check_unchanged(spec: StageSpec, before: Identity, inputs: Mapping[str, Manifest], workspace: Workspace) -> None:
    """Refuse to record a result whose input files changed while it was being made."""
    after = identify(spec, inputs, workspace.hashes)
    for name, value in before.files.items():
        if after.files.get(name) != value:
            raise PipelineError(
                f"stage {spec.name}: {name} was changed while the stage ran; "
                "its result was not recorded; run the same command again"
            )


def _discard(workspace: Workspace, identity: Identity) -> None:
    """Drop a complete result. What a killed forced run has begun since is kept, so that it resumes."""
    record = manifests.path_of(workspace.path, identity.kind, identity.fingerprint)
    if record.exists():
        record.unlink()
        shutil.rmtree(workspace.work(identity.kind, identity.fingerprint), ignore_errors=True)


def _link(spec: StageSpec, manifest: Manifest, workspace: Workspace) -> None:
    """Link the artifact by its stage's name, so that people find ``runs/quickstart/sft``."""
    if manifest.artifact is None:
        return
    artifact = workspace.path / manifest.artifact
    for name, file in _links(spec).items():
        path, target = workspace.path / name, artifact / file
        if not (path.is_symlink() and path.resolve() == target.resolve()):
            link(target, link_place(path))


def _links(spec: StageSpec) -> dict[str, str]:
    """The links at the top of the workspace: name -> the file of the artifact that it leads to ("" for all of it)."""
    return {spec.name: "", **{spec.name + Path(file).suffix: file for file in spec.stage.links}}
