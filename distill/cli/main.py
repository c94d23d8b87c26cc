"""The ``distill`` command: the list of commands, and how failures become exit codes.

Nothing heavy is imported here; each command imports what it needs when it runs.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from distill.cli import dataset_commands, student_commands, traces_commands
from distill.cli.dated import dated, in_one_log
from distill.cli.options import (
    DEFAULT_PIPELINE,
    Json,
    Limit,
    PipelineFile,
    Set,
    StageNames,
    WorkspaceOption,
    command,
)
from distill.machine import limit_threads
from pipeline.errors import Exit, PipelineError
from pipeline.files import disk_is_full

app = typer.Typer(
    name="distill",
    help="Distil a reasoning teacher into a small student: generate, verify, select, train, refine, evaluate.",
    epilog="Example: distill run --pipeline configs/quickstart.yaml",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
traces = typer.Typer(
    name="traces",
    help="Look into the trace store, even during a run.",
    epilog='Example: distill traces sql "SELECT source, count(*) FROM problems GROUP BY 1"',
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(traces)
traces_commands.add(traces)


def _version(asked: bool) -> None:
    if asked:
        from pipeline import __version__

        typer.echo(f"distill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of `distill` itself; what the command is for is said in `app`."""


@app.command(epilog="Example: distill run sft --pipeline configs/quickstart.yaml --set sft.lora.rank=16")
def run(
    stages: StageNames = None,
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    set_: Set = None,
    limit: Limit = None,
    force: Annotated[
        list[str] | None,
        typer.Option("--force", help="Rerun this stage even if it is complete; rows in the store are kept."),
    ] = None,
    max_time: Annotated[
        str | None, typer.Option("--max-time", help="Stop cleanly after this time (3h50m); exit code 75.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until another run in the workspace ends.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run, as `distill plan` does, and exit.")
    ] = False,
    json_: Json = False,
) -> None:
    """Run a pipeline, or some stages with all that they need. Run it again to continue after a stop."""
    command("run", "run")(
        stages or [], pipeline, workspace, set_ or [], limit, force or [], max_time, wait, dry_run, json_
    )


@app.command(epilog="Example: distill plan --pipeline configs/quickstart.yaml --set generate.samples=8")
def plan(
    stages: StageNames = None,
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    set_: Set = None,
    limit: Limit = None,
    json_: Json = False,
) -> None:
    """Show for each stage whether it is cached, partly done or will run, why, and what it will cost."""
    command("plan", "plan")(stages or [], pipeline, workspace, set_ or [], limit, json_)


@app.command(epilog="Example: distill status --pipeline configs/quickstart.yaml")
def status(
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    set_: Set = None,
    limit: Limit = None,
    json_: Json = False,
) -> None:
    """Show how far a run is, also from another terminal during the run."""
    command("status", "status")(pipeline, workspace, set_ or [], limit, json_)


@app.command(epilog="Example: distill prune --pipeline configs/quickstart.yaml --keep-days 7 --yes")
def prune(
    pipeline: Annotated[
        list[Path] | None,
        typer.Option(
            "--pipeline", "-p", help="A pipeline whose results to keep. May be repeated.", envvar="DISTILL_PIPELINE"
        ),
    ] = None,
    workspace: WorkspaceOption = None,
    set_: Set = None,
    limit: Limit = None,
    keep_days: Annotated[float, typer.Option(min=0.0, help="Keep anything younger than this many days.")] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", help="Delete what is shown.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until a run in the workspace ends.")] = False,
    json_: Json = False,
) -> None:
    """Show, and with --yes delete, what these pipelines no longer need: students and checkpoints of other settings, and
    leftovers of killed runs. Kept are their cached results and unfinished stages, everything in the store, and the
    record of each result. If you return to old settings, what was deleted is made again."""
    command("prune", "prune")(pipeline or [], workspace, set_ or [], limit, keep_days, yes, wait, json_)


@app.command("list", epilog="Example: distill list verifiers")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="stages, verifiers, engines, families, strategies, forms, models or pipelines. Default: all."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Argument(help="A kind of stage, to list its settings (`list stages sft`).")
    ] = None,
    json_: Json = False,
) -> None:
    """List stages, verifiers, engines, problem families, search strategies, forms, shipped models or pipelines; or the
    settings of a stage."""
    command("listing", "list_names")(kind, name, json_)


@app.command(epilog="Example: distill init my_pipeline.yaml --from gsm8k_embedded")
def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("pipeline.yaml"),
    template: Annotated[
        str, typer.Option("--from", help="The starter pipeline to copy (`distill list pipelines`).")
    ] = "quickstart",
) -> None:
    """Write a pipeline to start from."""
    command("listing", "init")(file, template)


@app.command(epilog="Example: distill doctor")
def doctor(json_: Json = False) -> None:
    """Check the installation: packages, devices, shipped models, and which package owns the `distill` script."""
    command("doctor", "doctor")(json_)


@app.command(epilog="Example: distill verify answers.jsonl --verifier math --output verdicts.jsonl")
def verify(
    file: Annotated[
        Path, typer.Argument(help="A file of answers: .jsonl, .json, .csv, .tsv or .parquet, also gzipped (.gz).")
    ],
    verifier: Annotated[
        str,
        typer.Option(help="A name (`distill list verifiers`), module:attribute, or a spec: '{all: [math, format]}'."),
    ],
    answer_key: Annotated[
        str,
        typer.Option(
            help="The column of the right answer, or several: '{prompt: prompt, entry_point: entry_point, test: test}'."
        ),
    ] = "answer",
    response_key: Annotated[str, typer.Option(help="The column of the response, including think tags.")] = "response",
    answer_pattern: Annotated[
        str | None, typer.Option(help="Use the last match of this pattern in the right answer: '#### (.+)'.")
    ] = None,
    no_answer: Annotated[
        bool, typer.Option("--no-answer", help="There is no right answer; only the form is judged.")
    ] = False,
    prompt_key: Annotated[str | None, typer.Option(help="The column of the prompt, if the verifier reads it.")] = None,
    thinking_key: Annotated[str | None, typer.Option(help="The column of the thinking, if it is separate.")] = None,
    think_opened: Annotated[
        bool,
        typer.Option(
            "--think-opened", help="Prompts ended in <think>, so a response without </think> is all thinking."
        ),
    ] = False,
    id_key: Annotated[str | None, typer.Option(help="The column to copy as `id`. Default: `id`.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write to this file when complete, not to stdout. Run again to continue after a stop.",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of rows, the first ones.")] = None,
    on_bad_row: Annotated[
        str, typer.Option(help="If a row cannot be read: stop (judge nothing), or skip (its output line says why).")
    ] = "stop",
    json_: Annotated[bool, typer.Option("--json", help="Print the summary (on stderr) as one JSON object.")] = False,
) -> None:
    """Judge a file of answers: one JSON line per row, in order, on stdout; a summary on stderr."""
    from distill.answers import AnswerColumns
    from pipeline.document import parse_value

    several = answer_key.lstrip().startswith("{")
    reference = None if no_answer else parse_value(answer_key) if several else answer_key
    columns = AnswerColumns(response_key, reference, answer_pattern, prompt_key, thinking_key, id_key, think_opened)
    command("verify", "verify")(file, verifier, columns, output, workers, limit, on_bad_row, json_)


student_commands.add(app)
dataset_commands.add(app, traces)


def main() -> None:
    """Run the command. Every expected failure becomes one line on stderr and an exit code."""
    _prepare_streams()
    # No telemetry, no update checks, and no thread pools that fight over two cores.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    limit_threads()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, until a command handles both itself
    try:
        code = app(prog_name="distill", standalone_mode=False)  # also as `python -m distill`
    except PipelineError as error:
        _fail(str(error), error.exit_code)
    except Exception as error:
        if (wrong := _misused(error)) is not None:
            _fail(wrong, Exit.INPUT)
        if disk_is_full(error):
            _fail("no space left on the disk, or in your quota; free some and run the same command again", Exit.INPUT)
        if isinstance(error, OSError) and error.filename:
            _fail(f"{error.filename}: {error.strerror}", Exit.FAILED)
        if "--json" in sys.argv:
            _event(f"{type(error).__name__}: {error}", Exit.FAILED)  # programs do not read the traceback on stderr
        raise
    except KeyboardInterrupt:
        _interrupted()
    if code == TYPER_INTERRUPTED:
        _interrupted()
    sys.exit(code)


def _prepare_streams() -> None:
    """Open /dev/null in place of a closed stdin, stdout or stderr (``2>&-``). Otherwise the next file to be opened,
    such as the store, would get the stream's number, and with it whatever a library prints. Print an escape for a
    character that the locale's encoding lacks, where Python would end the run."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


TYPER_INTERRUPTED = 130
"""Typer's exit code for Ctrl-C. (Typer itself handles a reader that goes away, such as `head`.)"""


def _misused(error: Exception) -> str | None:
    """The message for a wrong command line, in one line, or None for any other error.

    Such an error is recognised by its method, because typer has moved the class. A command without arguments prints its
    help.
    """
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        sys.exit(int(Exit.INPUT))
    command = context.command_path.removeprefix(context.find_root().command_path) if context else ""
    message = " ".join(error.format_message().split()).rstrip(".")
    return f"{message}; `distill{command} --help` tells what there is"


def _interrupted() -> None:
    """Exit here, because Python may end an interrupted process by the signal, whatever exit code it was given."""
    kept = "; what was made is kept, run the same command again"
    if sys.argv[1:2] == ["ask"]:
        kept = ""
    elif sys.argv[1:2] == ["verify"] and not {"-o", "--output"} & {word.split("=")[0] for word in sys.argv}:
        kept = "; nothing is kept without --output"
    try:
        _fail(f"interrupted{kept}", Exit.AGAIN)
    finally:
        os._exit(Exit.AGAIN)


def _event(message: str, code: Exit) -> None:
    """Print the failure as JSON for programs."""
    event = {"event": "error", "message": message, "exit_code": int(code)}
    with suppress(OSError):
        print(json.dumps(event), file=sys.stderr if _rows_on_stdout() else sys.stdout, flush=True)


def _rows_on_stdout() -> bool:
    return sys.argv[1:2] == ["verify"]


def _fail(message: str, code: Exit) -> NoReturn:
    """Print the message and exit. The exit code is the same if it cannot be printed (the terminal is gone, the disk of
    the log is full)."""
    if "--json" in sys.argv:
        _event(message, code)
    if not ("--json" in sys.argv and _rows_on_stdout()):
        with suppress(OSError):
            line = f"distill: {message}"
            print(dated(line) if sys.argv[1:2] == ["run"] and in_one_log() else line, file=sys.stderr, flush=True)
    sys.exit(int(code))
