"""Options of the commands that inspect a store. `distill.cli.traces` and `distill.cli.audit` implement them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.options import (
    DEFAULT_PIPELINE,
    FinishFilter,
    Json,
    ModelFilter,
    OutcomeFilter,
    PipelineFile,
    ProblemFilter,
    Selection,
    SourceFilter,
    WorkspaceOption,
    command,
)


def add(traces: typer.Typer) -> None:
    """Register the commands."""
    traces.command("list", epilog="Example: distill traces list --outcome incorrect --limit 5")(traces_list)
    traces.command("show", epilog="Example: distill traces show 3f9a")(traces_show)
    traces.command("sql", epilog='Example: distill traces sql "SELECT outcome, count(*) FROM verdicts GROUP BY 1"')(
        traces_sql
    )
    traces.command("stats", epilog="Example: distill traces stats")(traces_stats)
    traces.command("diff-verifiers", epilog="Example: distill traces diff-verifiers --a math@1 --b math@2")(
        traces_diff_verifiers
    )
    traces.command("disagreements", epilog="Example: distill traces disagreements --limit 5")(traces_disagreements)


def traces_list(
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    selection: Selection = None,
    outcome: OutcomeFilter = None,
    source: SourceFilter = None,
    model: ModelFilter = None,
    finish: FinishFilter = None,
    problem: ProblemFilter = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of traces.")] = 20,
    after: Annotated[
        str | None, typer.Option("--after", help="Key of a trace; list those after it (the next page).")
    ] = None,
    rollouts: Annotated[bool, typer.Option("--rollouts", help="Include rollouts.")] = False,
    json_: Json = False,
) -> None:
    """List traces with their newest verdict, newest first."""
    asked = {"outcome": outcome, "source": source, "model": model, "finish": finish, "problem": problem}
    command("traces", "list_traces")(pipeline, workspace, selection, asked, rollouts, limit, after, json_)


def traces_show(
    key: Annotated[str, typer.Argument(help="A trace key, or its beginning.")],
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    json_: Json = False,
) -> None:
    """Show one trace: rendered prompt, thinking, answer, sampling, and all verdicts."""
    command("traces", "show")(key, pipeline, workspace, json_)


def traces_sql(
    query: Annotated[str, typer.Argument(help="One SQL query; the tables are in docs/store.md.")],
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of rows. Default: 1000 in a table, otherwise all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write to this .csv, .jsonl or .parquet file, not to stdout.")
    ] = None,
    json_: Json = False,
) -> None:
    """Query the store, read-only. Rows are printed as they arrive."""
    command("traces", "sql")(query, pipeline, workspace, limit, output, json_)


def traces_stats(
    pipeline: PipelineFile = DEFAULT_PIPELINE, workspace: WorkspaceOption = None, json_: Json = False
) -> None:
    """Count traces and tokens by model and source, and each verifier's verdicts, abstentions and failures."""
    command("traces", "stats")(pipeline, workspace, json_)


def traces_diff_verifiers(
    a: Annotated[
        str | None,
        typer.Option("--a", help="A verifier: NAME, NAME@VERSION, or a spec. Default: the two in the store."),
    ] = None,
    b: Annotated[str | None, typer.Option("--b", help="Another verifier, or another version of it.")] = None,
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    limit: Annotated[int, typer.Option(min=0, help="How many of the traces on which they differ to list.")] = 20,
    json_: Json = False,
) -> None:
    """Compare the verdicts of two verifiers, or of two versions of one, on the same traces."""
    command("audit", "diff_verifiers")(a, b, pipeline, workspace, limit, json_)


def traces_disagreements(
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of traces.")] = 20,
    json_: Json = False,
) -> None:
    """List traces with contradicting verdicts: of two verifiers, or of one and its own second check."""
    command("audit", "disagreements")(pipeline, workspace, limit, json_)
