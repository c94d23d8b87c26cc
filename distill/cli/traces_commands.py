"""The commands that look into a store; only their options are here."""

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
    """Put the commands where they belong."""
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
    limit: Annotated[int, typer.Option(min=1, help="So many traces.")] = 20,
    after: Annotated[
        str | None, typer.Option("--after", help="The next page: traces that come after this one, by its key.")
    ] = None,
    rollouts: Annotated[bool, typer.Option("--rollouts", help="Rollouts of GRPO too.")] = False,
    json_: Json = False,
) -> None:
    """List traces with their newest verdict, newest first."""
    asked = {"outcome": outcome, "source": source, "model": model, "finish": finish, "problem": problem}
    command("traces", "list_traces")(pipeline, workspace, selection, asked, rollouts, limit, after, json_)


def traces_show(
    key: Annotated[str, typer.Argument(help="A trace key or its beginning.")],
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    json_: Json = False,
) -> None:
    """Show one trace: prompt as rendered, thinking, answer, sampling, all verdicts."""
    command("traces", "show")(key, pipeline, workspace, json_)


def traces_sql(
    query: Annotated[str, typer.Argument(help="One SQL query; the tables are in docs/store.md.")],
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many rows; by default a table shows 1000, the rest all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a .csv, .jsonl or .parquet file, not to stdout.")
    ] = None,
    json_: Json = False,
) -> None:
    """Query the store. It is opened read-only; rows are printed as they come."""
    command("traces", "sql")(query, pipeline, workspace, limit, output, json_)


def traces_stats(
    pipeline: PipelineFile = DEFAULT_PIPELINE, workspace: WorkspaceOption = None, json_: Json = False
) -> None:
    """Count traces and tokens by model and source, and each verifier's verdicts, abstentions and failures."""
    command("traces", "stats")(pipeline, workspace, json_)


def traces_diff_verifiers(
    a: Annotated[
        str | None,
        typer.Option("--a", help="A verifier: NAME, NAME@VERSION, or a spec; both left out: the two there are."),
    ] = None,
    b: Annotated[str | None, typer.Option("--b", help="Another verifier, or another version of it.")] = None,
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    limit: Annotated[int, typer.Option(min=0, help="List so many of the traces on which they differ.")] = 20,
    json_: Json = False,
) -> None:
    """Compare what two verifiers, or two versions of one, said of the same traces."""
    command("audit", "diff_verifiers")(a, b, pipeline, workspace, limit, json_)


def traces_disagreements(
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of them.")] = 20,
    json_: Json = False,
) -> None:
    """List traces that one verifier calls correct and another incorrect, or whose own check disagrees."""
    command("audit", "disagreements")(pipeline, workspace, limit, json_)
