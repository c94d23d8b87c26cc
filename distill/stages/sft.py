"""sft: fine-tune a student on the selected traces, through LoRA or whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import modelspec
from distill.modelspec import ModelName
from distill.prompting import Ask, Prompting, asking
from distill.stages.common import store_of
from distill.stages.devices import DeviceSettings, check_memory, foreseen
from distill.stages.student import publish
from distill.store.records import Row, kept, problem_of
from pipeline.errors import PipelineError
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Operational, Output, Settings, Stage

if TYPE_CHECKING:
    from distill.training.batching import Example
    from distill.training.loop import TrainSettings

ABOUT = "A student fine-tuned on a teacher's verified reasoning traces."


class LoraSettings(Settings):
    rank: Annotated[int, Field(ge=1)] = 32
    alpha: Annotated[float, Field(gt=0)] = 32.0


class SftSettings(DeviceSettings):
    data: Annotated[str, Input(accepts=("selection",))]
    student: ModelName
    """The model to start from."""
    lora: LoraSettings | None = LoraSettings()
    """``null`` trains all weights."""
    prompting: Prompting = None
    """How the student is asked (`system`, `template`), here as later in use; by default as the problem stands,
    however its teacher was asked."""
    thinking: bool = True
    """False is the control: the answers alone are learned, without the reasoning."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    batch_size: Annotated[int, Field(ge=1)] = 16
    epochs: Annotated[int, Field(ge=1)] = 1
    max_tokens: Annotated[int, Field(ge=1)] = 4096
    """Longer examples are dropped and counted, never cut."""
    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch_tokens: Annotated[int, Operational(), Field(ge=1)] = 4096
    threads: Annotated[int, Operational(), Field(ge=0)] = 0
    """0 takes all cores. Weights are equal to the last bit for an equal number."""
    seed: int = 0

    @model_validator(mode="after")
    def _learns(self) -> SftSettings:
        if self.prompting and (self.prompting.prefill or self.prompting.examples is not None):
            raise ValueError("prompting: a student learns to answer by itself; here are just system and template")
        return self


def run(context: Context, settings: SftSettings) -> Output:
    from distill.training import student
    from distill.training.batching import fitting
    from distill.training.loop import train
    from distill.training.lora import add_lora
    from distill.training.metrics import Recorder

    start = modelspec.find(settings.student, context.workspace, context.inputs, context.hashes)
    check_memory(context, settings, start)
    network, tokenizer = student.load(start)
    rows = kept(store_of(context), context.inputs[settings.data].digest)
    if not rows:
        raise PipelineError(
            f"stage {context.name}: {settings.data} kept no trace to train on; `distill traces stats` shows the "
            f"verdicts, and the rules of {settings.data} (keep, max_tokens) what was rejected"
        )
    ask = asking(settings.prompting, key=f"{context.name}.prompting")
    examples, dropped = fitting([example_of(tokenizer, row, settings, ask) for row in rows], settings.max_tokens)
    if dropped:
        context.note(f"dropped {len(dropped)} of {len(rows)} examples: longer than {settings.max_tokens} tokens")
    if settings.lora:
        network = add_lora(network, rank=settings.lora.rank, alpha=settings.lora.alpha, seed=settings.seed)
    with Recorder(store_of(context), context, ("loss", "learning_rate")) as recorder:
        result = train(
            network, examples, _how(settings), checkpoints=context.work / "checkpoints",
            stop=context.stopping, on_step=recorder, before_save=recorder.flush,
        )  # fmt: skip
    digest = publish(context, network, tokenizer, ABOUT, settings.student, settings)
    figures = {"examples": len(examples), "dropped": len(dropped), "steps": result.steps}
    return Output(digest, figures | {"loss": recorder.last().get("loss")})


def _how(settings: SftSettings) -> TrainSettings:
    from distill.training import student
    from distill.training.loop import TrainSettings
    from distill.training.optimizer import OptimizerSettings

    return TrainSettings(
        OptimizerSettings(settings.learning_rate, schedule=settings.schedule, warmup=settings.warmup),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        micro_batch_tokens=settings.micro_batch_tokens,
        precision=settings.precision,
        seed=settings.seed,
        threads=student.threads(settings.threads),
        devices=settings.devices,
        parallel=settings.parallel,
    )


def example_of(tokenizer: Any, row: Row, settings: SftSettings, ask: Ask) -> Example:
    """A trace in the student's own template and tokens, whoever its teacher was."""
    from distill.training.batching import from_messages
    from distill.training.student import conversation

    thinking = row["thinking"] if settings.thinking else ""
    asked = ask(problem_of(row)).messages
    return from_messages(tokenizer, row["trace_key"], conversation(asked, thinking, row["answer"]))


def forecast(context: Context, settings: SftSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    """Optimizer steps; before the selection is made, as many as there would be if all were kept."""
    data = expected.get(settings.data, {})
    examples = data.get("kept", data.get("traces"))
    if examples is None:
        return Forecast("steps")
    return Forecast("steps", -(-examples // settings.batch_size) * settings.epochs, 0, foreseen(settings))


def dependencies(settings: SftSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    return modelspec.dependency(settings.student, hashes)


STAGE = Stage(
    kind="sft",
    about="fine-tune a student on the selected traces",
    settings=SftSettings,
    produces="student",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
)
