"""How OpenAI-compatible servers differ, as data: how to have a prefilled response continued, and how to cap thinking.

`DIALECTS` has one row per server, chosen by ``dialect`` in the YAML. Fields of a single model (a reasoning effort, a
template's switch) belong in ``extra_body``. Left out: servers that do not differ from `openai` in these respects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distill.engines.base import NoSteps
from distill.engines.options import OpenAIOptions
from distill.thinking import OPEN, split_thinking
from distill.types import Request, ThinkingBudget
from pipeline.errors import InputError
from pipeline.stage import Settings


@dataclass(frozen=True, slots=True)
class Dialect:
    """To have the last message, the assistant's, continued, ``prefix`` is added to it and ``body`` to the call;
    ``prefix`` is None if the server cannot do that. ``thinking_field``: the thinking of a prefilled message goes into
    this field, so it must be closed. ``budget`` is the path of the server's own limit on thinking tokens, sent together
    with ``budget_body``; without one, we close thinking that is too long and have the response continued."""

    prefix: Mapping[str, Any] | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    thinking_field: str = ""
    budget: tuple[str, ...] = ()
    budget_body: Mapping[str, Any] = field(default_factory=dict)
    base_url: str = ""
    """The only address that continues a prefilled response, if the server has one."""
    seed_field: str = "seed"
    """Empty if the server refuses seeds."""
    limit_field: str = "max_tokens"
    """OpenAI's newer models know the newer name only, all other servers this one."""
    always: Mapping[str, Any] = field(default_factory=dict)
    """Added to every call. Think tags may be special tokens, which some servers leave out of the text."""
    counts_when_asked: bool = True
    """Whether a stream ends with token counts only if ``stream_options`` asks for them. False: it always does, and the
    server refuses that field."""


TAGS_KEPT = {"skip_special_tokens": False}

DIALECTS: Mapping[str, Dialect] = {
    "openai": Dialect(),
    "vllm": Dialect(prefix={}, body={"continue_final_message": True, "add_generation_prompt": False}, always=TAGS_KEPT),
    "sglang": Dialect(prefix={}, body={"continue_final_message": True}, always=TAGS_KEPT),
    "deepseek": Dialect(
        prefix={"prefix": True}, thinking_field="reasoning_content", base_url="https://api.deepseek.com/beta"
    ),
    "mistral": Dialect(prefix={"prefix": True}, seed_field="random_seed", counts_when_asked=False),
    "llama.cpp": Dialect(budget=("thinking_budget_tokens",)),
    "openrouter": Dialect(budget=("reasoning", "max_tokens")),
    "dashscope": Dialect(prefix={"partial": True}, budget=("thinking_budget",), budget_body={"enable_thinking": True}),
}

OURS = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p",
        "top_k", "seed", "random_seed", "n", "continue_final_message", "add_generation_prompt"}  # fmt: skip
"""Fields of a call that other settings decide."""


def adapted(dialect: Dialect, refusal: str) -> Dialect | None:
    """The dialect for a server that refuses a call, in these words, because of a field that it knows under another name
    (OpenAI's models at Azure or behind a gateway) or not at all (Gemini knows no seed); None if that is not why."""
    if dialect.limit_field == "max_tokens" and "Use 'max_completion_tokens' instead" in refusal:
        return replace(dialect, limit_field="max_completion_tokens")
    if dialect.seed_field and re.search(rf"\b{dialect.seed_field}\b", refusal):
        return replace(dialect, seed_field="")
    return None


def check_options(options: OpenAIOptions) -> None:
    """Raise `InputError` if ``extra_body`` sets a field that another setting decides."""
    taken = sorted(OURS & options.extra_body.keys())
    budget, body = DIALECTS[options.dialect].budget, options.extra_body
    for name in budget[:-1]:
        inner = body.get(name)
        body = inner if isinstance(inner, dict) else {}
    if budget and budget[-1] in body:
        taken.append(".".join(budget))
    if taken:
        raise InputError(f"extra_body: {taken[0]} is decided by another setting; leave it out here")


def can_go_on(options: OpenAIOptions) -> str | None:
    """Why this server cannot continue a truncated response, or None. Known before anything is paid for."""
    if DIALECTS[options.dialect].prefix is not None:
        return None
    able = ", ".join(name for name, known in DIALECTS.items() if known.prefix is not None)
    return f"an openai engine can continue a truncated response only with a dialect that supports it ({able})"


def no_budget(budget: ThinkingBudget | None, options: OpenAIOptions) -> str | None:
    """Why a thinking budget cannot be kept at this server, or None. Known when the YAML is read."""
    dialect = DIALECTS[options.dialect]
    if budget and budget.least:
        return (
            f"an endpoint cannot be made to think for at least {budget.least} tokens; leave out `least`, or use "
            "the transformers or the vllm engine"
        )
    if budget and budget.most is not None and not dialect.budget and dialect.prefix is None:
        able = ", ".join(name for name, known in DIALECTS.items() if known.budget or known.prefix is not None)
        return (
            f"dialect {options.dialect} has no thinking budget; set dialect to the kind of server ({able}), "
            "or leave the budget out"
        )
    return None


def no_beginning(options: OpenAIOptions) -> str | None:
    """Why this server cannot continue a prefilled response, or None."""
    if DIALECTS[options.dialect].prefix is not None:
        return None
    able = ", ".join(name for name, known in DIALECTS.items() if known.prefix is not None)
    return f"dialect {options.dialect} cannot continue a prefilled response; set dialect to the kind of server ({able})"


def check_wished(engine: Settings, budget: ThinkingBudget | None, begun: bool) -> None:
    """Raise ValueError if a stage's settings ask an endpoint for something it cannot do."""
    if isinstance(engine, OpenAIOptions):
        if why := no_budget(budget, engine):
            raise ValueError(f"thinking: {why}")
        if begun and (why := no_beginning(engine)):
            raise ValueError(f"prompting.prefill: {why}, or leave it out")


def check_request(request: Request, options: OpenAIOptions) -> None:
    """Raise `InputError` if this server cannot serve a request, before anything is sent."""
    dialect = DIALECTS[options.dialect]
    if request.stop:
        raise NoSteps(f"openai at {options.base_url}")
    if why := no_budget(request.budget, options) or (no_beginning(options) if request.prefix else None):
        raise InputError(f"{options.base_url}: {why}")
    if request.prefix and dialect.thinking_field and is_open(request.prefix):
        raise InputError(
            f"{options.base_url}: dialect {options.dialect} cannot continue inside the thinking; close it with </think>"
        )
    needed, given = dialect.base_url, options.base_url
    if request.prefix and needed and "api.deepseek.com" in given and given != needed:
        raise InputError(f"{given}: continues a prefilled response only at base_url {needed}")


def begun(request: Request, dialect: Dialect) -> dict[str, Any]:
    """The response's prefix as the last message. `check_request` has accepted it."""
    message: dict[str, Any] = {"role": "assistant", "content": request.prefix, **(dialect.prefix or {})}
    if dialect.thinking_field and OPEN in request.prefix:
        parts = split_thinking(request.prefix)
        message |= {"content": parts.answer, dialect.thinking_field: parts.thinking}
    return message


def budgeted(most: int, dialect: Dialect) -> dict[str, Any]:
    """The fields of the body that set the server's own limit on thinking."""
    value: Any = most
    for name in reversed(dialect.budget):
        value = {name: value}
    return {**value, **dialect.budget_body}


def is_open(text: str) -> bool:
    """Whether a prefix ends inside its thinking."""
    return not split_thinking(text).closed
