"""Find the model that a command line names: a stage's student, or any model by its own name."""

from __future__ import annotations

from pathlib import Path

from distill import modelspec
from distill.cli.open import load, workspace_of
from distill.modelspec import Model
from distill.stages.report import ReportSettings
from pipeline.config import PipelineSpec
from pipeline.errors import InputError
from pipeline.mistakes import nearest


def find(name: str | None, pipeline: Path, workspace: Path | None) -> Model:
    """A stage's student by the stage's name, or any model by its own name. Default: the last student."""
    spec = load(pipeline, workspace=workspace)
    space = workspace_of(spec)
    asked, name = name, name.removeprefix(modelspec.STAGE) if name else None
    students = [s.name for s in spec.stages.values() if s.stage.produces == "student"]
    made = {s: space.path / s / modelspec.MODEL for s in students if (space.path / s / modelspec.MODEL).is_dir()}
    if name is None:
        if not made:
            raise InputError(
                f"{space.path}: has no student yet; run the pipeline, or name another (--pipeline) or a model (--model)"
            )
        name = _last(spec, list(made))
    if name in made:
        return Model(str(made[name]), modelspec.identity_of(str(made[name].absolute()), space.hashes))
    if name in students:
        raise InputError(f"stage {name} has made no student yet; run it: distill run {name} --pipeline {pipeline}")
    if name != asked or (name in spec.stages and not Path(name).exists()):
        raise InputError(f"{asked}: {pipeline} has no such stage that makes a student{nearest(name, students)}")
    model = modelspec.find(name, space.path, {}, space.hashes)
    if space.path.is_dir():
        space.hashes.save()
    return model


def _last(spec: PipelineSpec, made: list[str]) -> str:
    """The last student among the training stages of a report; without one, the last that is no report's control."""
    reports = [stage.settings for stage in spec.stages.values() if isinstance(stage.settings, ReportSettings)]
    trained = [name for report in reports for name in report.training if name in made]
    controls = {name for report in reports for name in report.controls}
    return (trained or [name for name in made if name not in controls] or made)[-1]
