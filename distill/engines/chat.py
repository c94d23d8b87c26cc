"""One call to a chat endpoint as data: the request's body, and what its reply says.

Decides how the dialects of OpenAI-compatible endpoints become our one form: thinking, whatever its
field is called, stands in think tags before the answer; finish reasons and token counts are told in our
words. Nothing is sent from here: that is `distill.engines.openai`. Left out: tools, images, several
choices in a reply, logprobs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.engines.base import seed_of
from distill.thinking import estimate_tokens, join_thinking, split_thinking
from distill.types import Completion, Finish, Request

TEMPLATE_TOKENS = 64
"""Room for what a chat template puts around one message, where only an upper bound is known."""

FINISHES = {"length": Finish.LENGTH, "content_filter": Finish.REFUSED}
INTERRUPTED = {"error", "insufficient_system_resource"}
"""Finish reasons that mean that the server gave up in the middle: such a call is made again."""


class Malformed(Exception):
    """A reply that is not a chat completion. Servers under load send such things; it is asked again."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Per million tokens."""

    input: float
    output: float

    def cost(self, prompt_tokens: int, tokens: int) -> float:
        return (prompt_tokens * self.input + tokens * self.output) / 1e6

    def most(self, request: Request) -> float:
        """What a call can cost at the very most: no tokenizer makes more tokens than there are bytes."""
        prompt = sum(len(m["content"].encode()) + TEMPLATE_TOKENS for m in request.messages)
        return self.cost(prompt, request.sampling.max_tokens)


def body(request: Request, model: str, limit_field: str = "max_tokens") -> dict[str, Any]:
    """What is posted. Settings that change nothing are left out, since some endpoints refuse them."""
    sampling = request.sampling
    content: dict[str, Any] = {
        "model": model,
        "messages": [dict(message) for message in request.messages],
        limit_field: sampling.max_tokens,
        "temperature": sampling.temperature,
    }
    if sampling.temperature > 0:
        content["seed"] = seed_of(request)
        if sampling.top_p < 1:
            content["top_p"] = sampling.top_p
        if sampling.top_k:
            content["top_k"] = sampling.top_k
    return content


def parsed(text: str) -> Any:
    """A reply's text as data; `Malformed` where it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        raise Malformed(f"the reply is not valid JSON: {' '.join(text.split())[:80]!r}") from None


def completion(request: Request, reply: Any, prices: Prices, seconds: float) -> Completion:
    """The reply (parsed JSON) as a completion; `Malformed` where it is none."""
    message, reason = _choice(reply)
    thinking = _text(message, "reasoning") or _text(message, "reasoning_content")
    answer, refusal = _text(message, "content"), _text(message, "refusal")
    finish = FINISHES.get(reason, Finish.STOP)
    if refusal and not answer:
        answer, finish = refusal, Finish.REFUSED
    cut = finish is Finish.LENGTH and bool(thinking) and not answer
    text = join_thinking(thinking, answer, closed=not cut)
    if finish is Finish.STOP and not text.strip():
        finish = Finish.EMPTY
    usage = reply.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    total = _count(usage, "completion_tokens", estimate_tokens(text))
    prompt_tokens = _count(usage, "prompt_tokens", sum(estimate_tokens(m["content"]) for m in request.messages))
    thinking_tokens = min(reported_thinking(usage) or _share(text, total), total)
    cost = prices.cost(prompt_tokens, total) if usage else prices.most(request)
    return Completion(
        key=request.key,
        prompt=_prompt(request),
        prompt_ids=(),
        text=text,
        token_ids=(),
        logprobs=None,
        finish=finish,
        seconds=seconds,
        thinking_tokens=thinking_tokens,
        answer_tokens=total - thinking_tokens,
        prompt_tokens=prompt_tokens,
        cost=cost,
    )


def refused(request: Request) -> Completion:
    """The outcome where a content filter refused to take the prompt at all."""
    return Completion(request.key, _prompt(request), (), "", (), None, Finish.REFUSED, answer_tokens=0, prompt_tokens=0)


def _prompt(request: Request) -> str:
    """The messages as sent: the rendered prompt is the endpoint's secret."""
    return json.dumps([dict(message) for message in request.messages], ensure_ascii=False)


def reported_thinking(usage: Any) -> int:
    """The endpoint's own count of thinking tokens; 0 where it gives none (some say 0 for cut thinking)."""
    details = usage.get("completion_tokens_details") if isinstance(usage, Mapping) else None
    return _count(details, "reasoning_tokens", 0) if isinstance(details, Mapping) else 0


def _choice(reply: Any) -> tuple[Mapping[str, Any], str]:
    """The first choice's message and finish reason."""
    if not isinstance(reply, Mapping):
        raise Malformed("the reply is not a JSON object")
    if reply.get("error"):
        raise Malformed(f"the reply is an error: {json.dumps(reply['error'], ensure_ascii=False)[:200]}")
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
        raise Malformed("the reply has no choices[0].message")
    reason = str(choice.get("finish_reason"))
    if reason in INTERRUPTED:
        raise Malformed(f"the server broke off (finish reason {reason})")
    return choice["message"], reason


def _text(message: Mapping[str, Any], field: str) -> str:
    value = message.get(field)
    if value is not None and not isinstance(value, str):
        raise Malformed(f"the reply's {field} is not text")
    return (value or "").strip() if field != "content" else (value or "")


def _count(data: Mapping[str, Any], field: str, otherwise: int) -> int:
    value = data.get(field)
    return value if isinstance(value, int) and value >= 0 else otherwise


def _share(text: str, total: int) -> int:
    """Thinking tokens by the thinking's share of the letters, where the endpoint does not say."""
    parts = split_thinking(text)
    letters = len(parts.thinking) + len(parts.answer)
    return round(total * len(parts.thinking) / letters) if letters else 0
