"""What every stage that trains a student shares: how it is held, and how it ends: exported, described, published."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.cards import write_model_card
from distill.modelspec import MODEL, Model, ModelName
from distill.prompting import Ask, Prompting
from distill.stages.devices import DeviceSettings, threads
from distill.store.records import Row, problem_of
from distill.training.logs import Logger
from pipeline.errors import InputError
from pipeline.stage import Context, Input, Operational, Settings, later

if TYPE_CHECKING:
    from distill.training.batching import Example
    from distill.training.loop import TrainSettings

Precision = Literal["fp32", "bf16"]


class LoraSettings(Settings):
    rank: Annotated[int, Field(ge=1)] = 32
    alpha: Annotated[float, Field(gt=0)] = 32.0


class StudentSettings(DeviceSettings):
    student: ModelName
    """The model to start from."""
    lora: LoraSettings | None = LoraSettings()
    """``null`` trains all weights."""
    quantize: Literal["nf4"] | None = later()
    """`nf4` holds the linear layers under the adapter in 4 bits (QLoRA; the extra `qlora`)."""
    gradient_checkpointing: Annotated[bool, Operational()] = False
    """Keeps less of the forward pass and computes it again for the backward: less memory, a third more time."""
    precision: Precision = "fp32"
    """`bf16` computes in half precision; what is trained is held in fp32."""
    base_precision: Precision = later("fp32")
    """Of the weights under an adapter. `bf16` takes half their memory (it needs `lora` and `precision: bf16`); the
    merged model is then written so. With rewards, what is sampled from is the adapter rounded into such weights."""
    export_precision: Precision = later("fp32")
    """Of the merged model that is written. It is checked against the trained one, with that much rounding."""
    micro_batch_tokens: Annotated[int, Operational(), Field(ge=1)] = 4096
    threads: Annotated[int, Operational(), Field(ge=0)] = 0
    """0 takes all cores. Weights are equal to the last bit for an equal number."""
    log_to: Annotated[list[Logger], Operational(), Field(default_factory=list)]
    """Copies of the curves for TensorBoard and Weights & Biases (in `logs/` of the workspace) or trackio (where it
    keeps its own), of what is trained from then on."""
    seed: int = 0

    @model_validator(mode="after")
    def _trains_something(self) -> StudentSettings:
        if self.quantize and self.lora is None:
            raise ValueError("quantize: weights in 4 bits cannot be trained themselves; it needs `lora`")
        if self.base_precision == "bf16" and (self.lora is None or self.precision != "bf16" or self.quantize):
            raise ValueError("base_precision: bf16 needs `lora` and `precision: bf16`, and `quantize` takes its place")
        if self.base_precision == "bf16" and self.parallel == "fsdp":
            raise ValueError("base_precision: bf16 and an adapter in fp32 cannot be cut up together; use ddp")
        if self.quantize and (self.devices > 1 or self.parallel == "fsdp"):
            raise ValueError("quantize: with several devices weights in 4 bits cannot be trained on yet; use one")
        return self


class WriterSettings(StudentSettings):
    """What stages share whose student writes: all but those of reward models."""

    norm_learning_rate: Annotated[float | None, Field(gt=0)] = later()
    """Trains the final norm's weight beside the adapter, at this rate: the quickest way to sharpen."""

    @model_validator(mode="after")
    def _trains_a_norm(self) -> WriterSettings:
        if self.norm_learning_rate is not None and self.base_precision == "bf16":
            raise ValueError("norm_learning_rate: a norm in bf16 cannot be trained; leave it or base_precision out")
        return self


class SupervisedSettings(WriterSettings):
    """What stages share that train on the examples of a selection."""

    data: Annotated[str, Input(accepts=("selection",))]
    prompting: Prompting = None
    """How the student is asked (`system`, `template`), here as later in use; by default as the problem stands,
    however its teacher was asked."""
    learning_rate: Annotated[float | None, Field(gt=0)] = None
    """By default from the model's hidden size (5e-5 for all weights and ten times that for LoRA, at 2,000)."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    batch_size: Annotated[int, Field(ge=1)] = 16
    epochs: Annotated[int, Field(ge=1)] = 1
    max_tokens: Annotated[int, Field(ge=1)] = 4096
    """Longer examples are dropped and counted, never cut."""

    @model_validator(mode="after")
    def _answers_by_itself(self) -> SupervisedSettings:
        if self.prompting and (self.prompting.prefill or self.prompting.examples is not None):
            raise ValueError("prompting: a student learns to answer by itself; here are just system and template")
        return self

    def steps(self, expected: Mapping[str, Mapping[str, Any]]) -> int | None:
        """Optimizer steps; before the selection is made, as many as there would be if all were kept."""
        data = expected.get(self.data, {})
        examples = data.get("kept", data.get("traces"))
        return None if examples is None else -(-examples // self.batch_size) * self.epochs


def load_student(settings: StudentSettings, start: Model, samples: bool = False) -> tuple[Any, Any]:
    """(network ready to be trained, tokenizer). A model that is to be cut up lies in the machine's memory, unless this
    process ``samples`` from it."""
    from distill.training import student

    norm = isinstance(settings, WriterSettings) and settings.norm_learning_rate is not None
    adapter = student.Adapter(settings.lora.rank, settings.lora.alpha, norm) if settings.lora else None
    return student.load(
        start,
        adapter,
        seed=settings.seed,
        quantize=settings.quantize,
        gradient_checkpointing=settings.gradient_checkpointing,
        half=settings.precision == "bf16",
        half_base=settings.base_precision == "bf16",
        device="cpu" if settings.parallel == "fsdp" and settings.ranks() > 1 and not samples else "auto",
    )


def supervised(settings: SupervisedSettings, rate: float) -> TrainSettings:
    """``rate`` is the learning rate, which the settings may leave open."""
    from distill.training.loop import TrainSettings
    from distill.training.optimizer import OptimizerSettings

    return TrainSettings(
        OptimizerSettings(
            rate,
            norm_learning_rate=settings.norm_learning_rate,
            schedule=settings.schedule,
            warmup=settings.warmup,
        ),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        micro_batch_tokens=settings.micro_batch_tokens,
        precision=settings.precision,
        seed=settings.seed,
        threads=threads(settings.threads),
        devices=settings.devices,
        parallel=settings.parallel,
    )


def example_of(tokenizer: Any, row: Row, ask: Ask, thinking: bool = True) -> Example:
    """A trace in the student's own template and tokens, whoever its teacher was."""
    from distill.training.conversations import conversation, from_messages

    said = row["thinking"] if thinking else ""
    messages = conversation(ask(problem_of(row)).messages, said, row["answer"])
    return from_messages(tokenizer, row["trace_key"], messages)


def check_positions(stage: str, network: Any, examples: Sequence[Example]) -> None:
    """Refuse examples with more tokens than the model has positions: what it says behind them is noise, or a crash."""
    from distill.engines.prefill import positions_limit

    limit = positions_limit(network)
    longest = max(examples, key=len)
    if limit is not None and len(longest) > limit:
        raise InputError(
            f"stage {stage}: trace {longest.key[:12]} has {len(longest)} tokens, but the student knows {limit} "
            f"positions (its config.json says so); lower max_tokens to {limit}, which leaves out what is longer"
        )


def exported(context: Context, network: Any, tokenizer: Any, settings: Settings, name: str) -> Path:
    """Adapter and merged model, in the stage's own directory, which is gone when the stage is done."""
    from distill.training.export import export_student

    built = context.work / name
    shutil.rmtree(built, ignore_errors=True)  # what an earlier attempt left
    export_student(network, tokenizer, built, half=getattr(settings, "export_precision", "fp32") == "bf16")
    return built


def publish(
    context: Context,
    network: Any,
    tokenizer: Any,
    about: str,
    start: str,
    settings: Settings,
    told: Mapping[str, str] | None = None,
) -> str:
    """Adapter, merged model and model card as the stage's artifact; returns its content hash.

    ``start`` names the model that training began with. ``told`` is said in the card of settings that were
    left to the stage.
    """
    built = exported(context, network, tokenizer, settings, "artifact")
    write_model_card(built / MODEL, context, about, start, {**settings.model_dump(mode="json"), **(told or {})})
    return context.publish(built)
