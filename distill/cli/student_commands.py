"""Options of the commands that use a student: compare it, ask it, serve it. Other modules implement them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distill.cli.options import (
    DEFAULT_PIPELINE,
    Dtype,
    Effort,
    Json,
    Limit,
    PipelineFile,
    Set,
    StudentName,
    WorkspaceOption,
    command,
)


def add(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(epilog="Example: distill compare sft grpo --pipeline configs/quickstart.yaml")(compare)
    app.command("lm-eval", epilog="Example: distill lm-eval tasks/ grpo --pipeline configs/quickstart.yaml")(lm_eval)
    app.command(epilog='Example: distill ask "Compute left to right: 12 + 7 * 3 - 4" --show-thinking')(ask)
    app.command(epilog="Example: distill serve --model grpo --port 8000 -- --max-model-len 4096")(serve)


def compare(
    before: Annotated[str, typer.Argument(help="A model's label in an evaluate stage, or STAGE/LABEL.")],
    after: Annotated[str, typer.Argument(help="The other model.")],
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    set_: Set = None,
    limit: Limit = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="The evaluate stage. Default: the pipeline's last.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Compare the greedy answers, one per problem (McNemar's test).")
    ] = False,
    json_: Json = False,
) -> None:
    """Compare two models on the same problems: overall, by family and by difficulty."""
    command("compare", "compare")(before, after, pipeline, workspace, set_ or [], limit, stage, greedy, json_)


def lm_eval(
    directory: Annotated[Path, typer.Argument(help="Where to write the tasks.")],
    model: Annotated[
        str | None, typer.Argument(help="A model's label in the stage, for the command that is printed.")
    ] = None,
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    stage: Annotated[
        str | None, typer.Option("--stage", help="The evaluate stage. Default: the pipeline's last.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write the problems of an evaluate stage as tasks for lm-evaluation-harness, judged by their own verifiers."""
    command("harness", "lm_eval")(directory, model, pipeline, workspace, stage, json_)


def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    model: StudentName = None,
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    show_thinking: Annotated[bool, typer.Option("--show-thinking", help="Print the thinking too.")] = False,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, help="Sampling temperature. Default: 0 (greedy), or 1 with a strategy that samples."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum for thinking and answer together. Default: 512, more with a large --budget."),
    ] = None,
    budget: Annotated[
        int | None, typer.Option(min=0, help="Maximum thinking tokens, after which the model must answer.")
    ] = None,
    effort: Annotated[
        Effort | None, typer.Option(help="A budget by name: an eighth, half or all of --max-tokens.")
    ] = None,
    force_budget: Annotated[
        int, typer.Option(min=0, help="Minimum thinking tokens: thinking that ends earlier is continued.")
    ] = 0,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="How several samples become one answer: majority, adaptive, weighted... (`distill list strategies`)."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Maximum samples (or beams) for the strategy. Default: 8.")
    ] = None,
    prm: Annotated[
        str | None, typer.Option(help="The process reward model that scores steps: a directory, or prm:STAGE.")
    ] = None,
    likelihood: Annotated[
        str | None, typer.Option(help="Instead of --prm: a model whose probability of a step is its score.")
    ] = None,
    scorer_dtype: Annotated[
        Dtype | None,
        typer.Option(help="What --prm or --likelihood is loaded in: bfloat16 takes half the memory. Default: float32."),
    ] = None,
    engine: Annotated[str, typer.Option(help="transformers, vllm, or openai with --base-url.")] = "transformers",
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint that serves the model.")] = None,
    key_from: Annotated[
        str | None, typer.Option(help="The environment variable with its key. Default: OPENAI_API_KEY.")
    ] = None,
    dialect: Annotated[
        str | None, typer.Option(help="The kind of server, for thinking budgets: vllm, sglang, llama.cpp...")
    ] = None,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 0,
    json_: Json = False,
) -> None:
    """Ask a student a question. The answer is streamed; the thinking is shown only with --show-thinking."""
    from distill.cli.ask import Search, Where

    command("ask", "ask")(
        question, Where(model, pipeline, workspace, engine, base_url, key_from, dialect),
        Search(strategy, samples, prm, likelihood, scorer_dtype), show_thinking, temperature, max_tokens, budget,
        effort, force_budget, seed, json_,
    )  # fmt: skip


def serve(
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- SERVER OPTIONS]", help="Options for the server itself."),
    ] = None,
    model: StudentName = None,
    pipeline: PipelineFile = DEFAULT_PIPELINE,
    workspace: WorkspaceOption = None,
    engine: Annotated[
        str | None, typer.Option(help="vllm or transformers. Default: the first of these that is installed.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is reachable from other machines.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
) -> None:
    """Serve a student over an OpenAI-compatible API, with vLLM or transformers."""
    command("serve", "serve")(model, pipeline, workspace, engine, host, port, more or [])
