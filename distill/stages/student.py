"""Shared by all stages that train a student: its settings, loading it, and exporting and publishing the result."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from distill.cards import write_model_card
from distill.modelspec import MODEL, Model, ModelName
from distill.stages.devices import DeviceSettings
from distill.training.logs import Logger
from pipeline.stage import Context, Operational, Settings, later

Precision = Literal["fp32", "bf16"]


class LoraSettings(Settings):
    ELSEWHERE: ClassVar[Mapping[str, str]] = {"r": "rank", "lora_alpha": "alpha"}  # peft's names
    rank: Annotated[int, Field(ge=1)] = 32
    alpha: Annotated[float, Field(gt=0)] = 32.0


class StudentSettings(DeviceSettings):
    # TRL's, verl's and transformers' names: docs/training.md has the table.
    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        "max_steps": "steps", "max_length": "max_tokens", "max_completion_length": "sampling.max_tokens",
        "per_device_train_batch_size": "batch_size", "num_generations": "group", "reward_funcs": "reward",
        "reward_weights": "reward", "beta": "kl", "kl_loss_coef": "kl", "epsilon": "clip_low",
        "epsilon_high": "clip_high", "delta": "clip_cap",
        "num_iterations": "passes", "ppo_epochs": "passes", "steps_per_generation": "updates",
        "scale_rewards": "scale", "loss_type": "loss", "mask_truncated_completions": "overlong", "lmbda": "on_policy",
        "r": "lora.rank", "lora_alpha": "lora.alpha", "load_in_4bit": "quantize", "bf16": "precision",
        "report_to": "log_to", "vllm_importance_sampling_mode": "engine_correction",
    }  # fmt: skip
    student: ModelName
    """The model to start from."""
    lora: LoraSettings | None = LoraSettings()
    """`null` trains all weights."""
    quantize: Literal["nf4"] | None = later()
    """`nf4` holds the linear layers under the adapter in 4 bits (QLoRA; needs the extra `qlora`)."""
    gradient_checkpointing: Annotated[bool, Operational()] = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    precision: Precision = "fp32"
    """`bf16` computes in bfloat16; trained weights stay in fp32."""
    base_precision: Precision = later("fp32")
    """Precision of the weights under an adapter. `bf16` halves their memory (needs `lora` and `precision: bf16`), and
    the merged model is saved in bf16. RL stages then sample with the adapter rounded into bf16 weights."""
    export_precision: Precision = later("fp32")
    """Precision of the saved merged model. It is checked against the trained one, allowing for this rounding."""
    micro_batch_tokens: Annotated[int, Operational(), Field(ge=1)] = 4096
    """Tokens computed at once. Lower it to save memory; only rounding changes."""
    threads: Annotated[int, Operational(), Field(ge=0)] = 0
    """CPU threads; 0 uses all cores. Weights are bit-identical only for the same number."""
    log_to: Annotated[list[Logger], Operational(), Field(default_factory=list)]
    """Also write the curves, from this run on, to TensorBoard or Weights & Biases (`logs/` in the workspace) or to
    trackio (its own place)."""
    seed: int = 0

    @model_validator(mode="after")
    def _trains_something(self) -> StudentSettings:
        if self.quantize and self.lora is None:
            raise ValueError("quantize: 4-bit weights cannot be trained themselves; this needs `lora`")
        if self.base_precision == "bf16" and (self.lora is None or self.precision != "bf16" or self.quantize):
            raise ValueError(
                "base_precision: bf16 needs `lora` and `precision: bf16`, and cannot be combined with `quantize`"
            )
        if self.base_precision == "bf16" and self.parallel == "fsdp":
            raise ValueError("base_precision: bf16 cannot be sharded together with an adapter in fp32; use ddp")
        if self.quantize and (self.devices > 1 or self.parallel == "fsdp"):
            raise ValueError("quantize: training on 4-bit weights works on one device only, so far")
        return self


class WriterSettings(StudentSettings):
    """Settings of the stages whose student generates text: all but those of reward models."""

    norm_learning_rate: Annotated[float | None, Field(gt=0)] = later()
    """Also train the final norm's weight, at this learning rate. It is the quickest way to sharpen the distribution."""

    @model_validator(mode="after")
    def _trains_a_norm(self) -> WriterSettings:
        if self.norm_learning_rate is not None and self.base_precision == "bf16":
            raise ValueError("norm_learning_rate: a norm in bf16 cannot be trained; leave it or base_precision out")
        return self


def load_student(settings: StudentSettings, start: Model, samples: bool = False) -> tuple[Any, Any]:
    """(network ready for training, tokenizer). A model that will be sharded is loaded on the CPU, unless this process
    ``samples`` from it."""
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


def exported(context: Context, network: Any, tokenizer: Any, settings: Settings, name: str) -> Path:
    """Write adapter and merged model into the stage's work directory, which is deleted when the stage is done."""
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
    chosen: Mapping[str, str] | None = None,
) -> str:
    """Adapter, merged model and model card as the stage's artifact; returns its content hash.

    ``start`` names the model that training began with. ``chosen`` holds the values of settings that were left
    to the stage, for the card.
    """
    built = exported(context, network, tokenizer, settings, "artifact")
    write_model_card(built / MODEL, context, about, start, {**settings.model_dump(mode="json"), **(chosen or {})})
    return context.publish(built)
