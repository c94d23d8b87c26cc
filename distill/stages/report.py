"""report: the results of a run, as an HTML page and a JSON file.

Reads the manifests of its inputs and the store; samples nothing. `distill.report.data` describes the data.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from distill.evaluation.behaviours import CANDIDATES, shipped
from distill.evaluation.emergence import Asked, Looking, observe
from distill.report.data import Sources, gather
from distill.sources.columns import Pattern
from distill.stages.common import store_of
from distill.types import Verdict
from distill.verifiers import VerifierPool
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Context, Input, Output, Settings, Stage, later, stop_check

HTML, JSON = "report.html", "report.json"
Students = Annotated[list[str], Input(accepts=("student", "model"), figures=True), Field(default_factory=list)]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


class EmergenceSettings(Settings):
    """What to look for in the rollouts of the stages that trained the student."""

    phrases: dict[str, list[Annotated[str, AfterValidator(_compiles)]]] = Field(default_factory=dict)
    """More behaviours to count, by name, each a list of regular expressions. A name of a shipped one (`verification`,
    `backtracking`, `subgoals`) replaces it."""
    candidates: list[Pattern] = Field(default_factory=lambda: list(CANDIDATES))
    """Regular expressions whose group is an answer that the thinking names before the final one."""
    each: Annotated[int, Field(ge=1)] = 200
    """Rollouts read for each point of a curve."""

    def looking(self) -> Looking:
        return Looking({**shipped(), **self.phrases}, self.candidates, self.each)


class ReportSettings(Settings):
    evaluation: Annotated[str, Input(accepts=("evaluation",), figures=True)]
    selection: Annotated[str | None, Input(accepts=("selection",), figures=True)] = None
    """Shown as the funnel from generated to kept."""
    training: Students
    """The stages that made the student, in order; shown with their curves."""
    controls: Students
    """Stages that trained students for comparison."""
    stages: Annotated[
        list[str], Input(accepts=("problems", "traces", "verdicts", "selection", "student", "model"), figures=True)
    ] = Field(default_factory=list)
    """Other stages whose time and figures are shown."""
    search: Annotated[str | None, Input(accepts=("search",), figures=True)] = later()
    """Shown as accuracy against samples and tokens, for each strategy and scorer."""
    reward_models: Annotated[list[str], Input(accepts=("prm",), figures=True)] = later([])
    """Stages that trained process reward models; their test results are shown."""
    examples: Annotated[int, Field(ge=0)] = 3
    """Number of problems shown with the answers before and after."""
    emergence: EmergenceSettings | None = EmergenceSettings()
    """How the thinking changes during training, from stored rollouts; `null` leaves it out."""


def run(context: Context, settings: ReportSettings) -> Output:
    from distill.report.render import render

    def named(names: Iterable[str]) -> dict[str, Manifest]:
        return {name: context.inputs[name] for name in names}

    store = store_of(context)
    how = settings.emergence
    sources = Sources(
        store,
        evaluation=(settings.evaluation, context.inputs[settings.evaluation]),
        selection=(settings.selection, context.inputs[settings.selection]) if settings.selection else None,
        training=named(settings.training),
        controls=named(settings.controls),
        others=named(settings.stages),
        examples=settings.examples,
        emergence=partial(observe, store, looking=how.looking(), judge=partial(_judge, context)) if how else None,
        search=(settings.search, context.inputs[settings.search]) if settings.search else None,
        reward_models=named(settings.reward_models),
    )
    report = gather(sources)
    built = context.work / "artifact"
    shutil.rmtree(built, ignore_errors=True)
    built.mkdir(parents=True)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (built / JSON).write_text(text + "\n", encoding="utf-8")
    (built / HTML).write_text(render(report), encoding="utf-8")
    return Output(context.publish(built), {"models": len(report["models"]), "headline": report["headline"]})


def _judge(context: Context, asked: Iterable[Asked]) -> Iterator[tuple[Any, Verdict]]:
    with VerifierPool(1, note=context.note, hashes=context.hashes) as pool:
        yield from pool.verify_many(asked, context.stopping)
    stop_check(context.stopping)


def dependencies(settings: ReportSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    """The names of the stages: they are printed, so a renamed one makes a new report."""
    return {"names of stages": content_hash(settings.model_dump(mode="json"))}


STAGE = Stage(
    kind="report",
    about="show what the run found: report.html and report.json",
    settings=ReportSettings,
    produces="report",
    run=run,
    version=2,
    dependencies=dependencies,
    links=(HTML, JSON),
)
