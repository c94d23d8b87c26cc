"""report: what the run found, as one page to look at and one file to read by program.

Reads the manifests of its inputs and the store; makes nothing new. The data is described in
`distill.report.data`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from typing import Annotated

from pydantic import Field

from distill.report.data import Sources, gather
from distill.stages.common import store_of
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Context, Input, Output, Settings, Stage, later

HTML, JSON = "report.html", "report.json"
Students = Annotated[list[str], Input(accepts=("student", "model"), figures=True), Field(default_factory=list)]


class ReportSettings(Settings):
    evaluation: Annotated[str, Input(accepts=("evaluation",), figures=True)]
    selection: Annotated[str | None, Input(accepts=("selection",), figures=True)] = None
    """Shown as the funnel from generated to kept."""
    training: Students
    """The stages that made the student, in order: the story, with its curves."""
    controls: Students
    """Stages that made students for comparison."""
    stages: Annotated[
        list[str], Input(accepts=("problems", "traces", "verdicts", "selection", "student", "model"), figures=True)
    ] = Field(default_factory=list)
    """Further stages whose seconds and figures are shown."""
    reward_models: Annotated[list[str], Input(accepts=("prm",), figures=True)] = later([])
    """Stages that trained process reward models: how these were tested."""
    choices: Annotated[list[str], Input(accepts=("choice",), figures=True)] = later([])
    """`choose` stages: what choosing among stored samples buys."""
    examples: Annotated[int, Field(ge=0)] = 3
    """Problems shown with the answers before and after."""


def run(context: Context, settings: ReportSettings) -> Output:
    from distill.report.render import render

    def named(names: Iterable[str]) -> dict[str, Manifest]:
        return {name: context.inputs[name] for name in names}

    sources = Sources(
        store_of(context),
        evaluation=(settings.evaluation, context.inputs[settings.evaluation]),
        selection=(settings.selection, context.inputs[settings.selection]) if settings.selection else None,
        training=named(settings.training),
        controls=named(settings.controls),
        others=named(settings.stages),
        examples=settings.examples,
        reward_models=named(settings.reward_models),
        choices=named(settings.choices),
    )
    report = gather(sources)
    built = context.work / "artifact"
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir(parents=True)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (built / JSON).write_text(text + "\n", encoding="utf-8")
    (built / HTML).write_text(render(report), encoding="utf-8")
    return Output(context.publish(built), {"models": len(report["models"]), "headline": report["headline"]})


def dependencies(settings: ReportSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    """The names of the stages: they are printed, so a renamed one makes a new report."""
    return {"names of stages": content_hash(settings.model_dump(mode="json"))}


STAGE = Stage(
    kind="report",
    about="show what the run found: report.html and report.json",
    settings=ReportSettings,
    produces="report",
    run=run,
    dependencies=dependencies,
    links=(HTML, JSON),
)
