"""export: write a selection as a data set to publish, with its card; `distill.dataset` does the work."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from distill.dataset import write
from distill.dataset.choice import Choice
from distill.stages.common import store_of
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Output, Settings, Stage


class ExportSettings(Settings):
    traces: Annotated[str, Input(accepts=("selection", "verdicts", "traces"))]
    """Of a selection, only the kept traces are exported."""
    outcome: Literal["correct", "incorrect", "unverifiable"] | None = None
    """Export only traces with this verdict: the one that the selection or stage used, or, for plain traces, the
    newest."""
    where: str | None = None
    """An SQL condition over the view `overview`."""


def run(context: Context, settings: ExportSettings) -> Output:
    record = context.inputs[settings.traces]
    choice = Choice.of(record, outcome=settings.outcome, where=settings.where, rollouts=True)
    built = context.work / "artifact"
    shutil.rmtree(built, ignore_errors=True)
    with store_of(context).snapshot() as still:
        rows = write.build(still, choice, built, context.workspace)
    context.progress(rows, rows)
    return Output(context.publish(built), {"traces": rows})


def forecast(context: Context, settings: ExportSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    found = expected.get(settings.traces, {})
    return Forecast("traces", found.get("kept", found.get("traces", found.get("members"))))


def dependencies(settings: ExportSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> dict[str, str]:
    """The fingerprint of the exported stage: equal traces may come from other problems, licences and verifiers, which
    appear in the rows and the card."""
    return {f"record of {settings.traces}": upstream[settings.traces].fingerprint}


STAGE = Stage(
    kind="export",
    about="write traces as a data set to publish, with its card",
    settings=ExportSettings,
    produces="dataset",
    run=run,
    version=2,
    forecast=forecast,
    dependencies=dependencies,
)
