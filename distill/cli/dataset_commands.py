"""Options of the commands that bring traces into a store and out of one. `distill.cli.dataset` implements them."""

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
    Where,
    WorkspaceOption,
    command,
)


def add(app: typer.Typer, traces: typer.Typer) -> None:
    """Register the commands."""
    traces.command(
        "import", epilog="Example: distill traces import r1.jsonl --teacher r1 --prompt question --answer response"
    )(traces_import)
    traces.command("export", epilog="Example: distill traces export my_dataset --selection select")(traces_export)
    app.command("card", epilog="Example: distill card --selection select --output README.md")(card)


def traces_import(
    file: Annotated[
        Path,
        typer.Argument(
            help="A .jsonl, .json, .csv, .tsv or .parquet file (also .gz), or a data set's directory; traces in rows."
        ),
    ],
    teacher: Annotated[str, typer.Option(help="Who wrote the traces; recorded as the model imported:NAME.")],
    form: Annotated[
        str | None, typer.Option(help="A published format instead of columns: openr1-math... (`distill list forms`).")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The column of the question.")] = None,
    answer: Annotated[str | None, typer.Option(help="The column of the response, including think tags.")] = None,
    thinking: Annotated[str | None, typer.Option(help="The column of the thinking, if it is separate.")] = None,
    messages: Annotated[str | None, typer.Option(help="The column of conversations, instead of these three.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="The column of the right answer, or several: '{test: test, entry_point: name}'.")
    ] = None,
    reference_pattern: Annotated[
        str | None, typer.Option(help="Use the last match of this pattern in it: '#### (.+)'.")
    ] = None,
    verifier: Annotated[str | None, typer.Option(help="The verifier of these problems. Default: math.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the problems.")] = None,
    source: Annotated[str | None, typer.Option(help="Name of the problems' source. Default: the file's name.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of traces, the first ones.")] = None,
    on_bad_row: Annotated[str | None, typer.Option(help="If a row cannot be read: stop (default) or skip.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Another key of the import stage: key=value. May be repeated.")
    ] = None,
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    json_: Json = False,
) -> None:
    """Import published traces into the store, as the import stage does. Importing them again adds nothing."""
    asked = {
        "teacher": teacher, "form": form, "prompt": prompt, "answer": answer, "thinking": thinking,
        "messages": messages, "reference": reference, "reference_pattern": reference_pattern, "verifier": verifier,
        "licence": licence, "source": source, "take": limit, "on_bad_row": on_bad_row,
    }  # fmt: skip
    command("dataset", "import_file")(file, pipeline, workspace, asked, set_ or [], json_)


def traces_export(
    target: Annotated[Path, typer.Argument(help="A new directory (for a Hugging Face data set), or a .parquet file.")],
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    selection: Selection = None,
    outcome: OutcomeFilter = None,
    source: SourceFilter = None,
    model: ModelFilter = None,
    finish: FinishFilter = None,
    problem: ProblemFilter = None,
    where: Where = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    json_: Json = False,
) -> None:
    """Write traces as conversations, to a Parquet file or a data set with its card. Also works during a run."""
    asked = {
        "outcome": outcome, "source": source, "model": model, "finish": finish, "problem": problem, "where": where
    }  # fmt: skip
    command("dataset", "export")(target, pipeline, workspace, selection, asked, force, json_)


def card(
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    selection: Selection = None,
    outcome: OutcomeFilter = None,
    source: SourceFilter = None,
    model: ModelFilter = None,
    where: Where = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file, not to stdout.")] = None,
    json_: Json = False,
) -> None:
    """Describe the traces in a store: problems, teacher, sampling, verification, lengths, overlap, price."""
    asked = {"outcome": outcome, "source": source, "model": model, "where": where}
    command("dataset", "card")(pipeline, workspace, selection, asked, output, json_)
