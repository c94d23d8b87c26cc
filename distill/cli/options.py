"""Options that several commands share, and the lookup of a command's implementation."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_PIPELINE = Path("configs/quickstart.yaml")

PipelineFile = Annotated[
    Path, typer.Option("--pipeline", "-p", help="The pipeline's YAML file.", envvar="DISTILL_PIPELINE")
]
WorkspaceOption = Annotated[
    Path | None, typer.Option("--workspace", "-w", help="Workspace directory; overrides the YAML.")
]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: stage.key=value. May be repeated.")]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Maximum number of problems per source and split. `steps` stay as set."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
StageNames = Annotated[
    list[str] | None, typer.Argument(help="Stages to bring up to date, with all that they need. Default: all.")
]
StudentName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="A stage, a directory, a hub name, or embedded:NAME. Default: the last student, controls aside.",
    ),
]


class Effort(StrEnum):
    """How long to think, by name."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Dtype(StrEnum):
    """In which precision a model is loaded."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def command(module: str, function: str) -> Callable[..., Any]:
    """The implementation in ``distill.cli.<module>``, imported on use."""
    implementation: Callable[..., Any] = getattr(import_module(f"distill.cli.{module}"), function)
    return implementation


Selection = Annotated[
    str | None,
    typer.Option(
        "--selection", "--stage", help="Only traces of this stage, as last run; of a selection, only those kept."
    ),
]
OutcomeFilter = Annotated[
    str | None,
    typer.Option("--outcome", help="correct, incorrect or unverifiable, by the stage's verdict or else the newest."),
]
SourceFilter = Annotated[str | None, typer.Option("--source", help="Only problems of this source.")]
ModelFilter = Annotated[str | None, typer.Option("--model", help="Only models whose name or identity contains this.")]
FinishFilter = Annotated[
    str | None, typer.Option("--finish", help="Only this finish reason: stop, length, refused or empty.")
]
ProblemFilter = Annotated[str | None, typer.Option("--problem", help="Only problems whose name starts with this.")]
Where = Annotated[
    str | None, typer.Option("--where", help="An SQL condition over the view `overview` (docs/store.md).")
]
