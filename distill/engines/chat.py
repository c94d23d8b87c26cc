"""One call to a chat endpoint as data: builds the request's body and parses the reply.

The replies of all OpenAI-compatible endpoints are brought into one form: the thinking, whatever its field is
called, is put into think tags before the answer, and finish reasons and token counts become ours. Nothing is
sent from here; `distill.engines.endpoint` does that. Left out: tools, images, several choices in a reply,
logprobs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.engines import dialects
from distill.engines.base import seed_of
from distill.engines.dialects import Dialect, is_open
from distill.engines.prices import NOTHING, Bill, Prices
from distill.letters import whole_letters
from distill.thinking import CLOSE, OPEN, estimate_tokens, join_thinking, split_thinking
from distill.types import Completion, Finish, Request

FINISHES = {
    "length": Finish.LENGTH,
    "model_length": Finish.LENGTH,  # Mistral: the model's context is full
    "model_context_window_exceeded": Finish.LENGTH,  # Z.ai
    "content_filter": Finish.REFUSED,
    "sensitive": Finish.REFUSED,  # Z.ai
}
"""All other finish reasons are taken for a response that is complete."""
INTERRUPTED = {"error", "abort", "network_error", "insufficient_system_resource"}
"""Finish reasons of a server that gave up midway (vLLM and SGLang say ``abort``); such a call is made again."""
MOST_TOKENS = 2**30
"""A larger count is nonsense, and would not fit into a row."""


class Malformed(Exception):
    """A reply that is not a chat completion. Servers under load send such replies; the call is made again."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of one call. ``thinking_tokens`` is the endpoint's own count, if it reports one."""

    thinking: str
    answer: str
    finish: Finish
    bill: Bill
    thinking_tokens: int | None = None
    seconds: float = 0.0


def body(
    request: Request,
    model: str,
    dialect: Dialect,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON body to post. Settings that change nothing are left out, since some endpoints refuse them."""
    sampling = request.sampling
    content: dict[str, Any] = {
        "model": model,
        "messages": [dict(message) for message in request.messages],
        dialect.limit_field: sampling.max_tokens,
        "temperature": sampling.temperature,
        **dialect.always,
    }
    if sampling.temperature > 0:
        if dialect.seed_field:
            content[dialect.seed_field] = seed_of(request)
        if sampling.top_p < 1:
            content["top_p"] = sampling.top_p
        if sampling.top_k:
            content["top_k"] = sampling.top_k
    if request.prefix:
        content["messages"].append(dialects.begun(request, dialect))
        content |= dialect.body
    if request.budget and request.budget.most is not None and dialect.budget:
        content |= dialects.budgeted(request.budget.most, dialect)
    return merged(content, extra) if extra else content


def merged(content: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` updated with ``extra``; nested mappings are merged."""
    found = dict(content)
    for name, value in extra.items():
        inner = found.get(name)
        found[name] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return found


def parsed(text: str) -> Any:
    """Parse a reply's text. Raises `Malformed` if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed(f"the reply is not valid JSON: {' '.join(text.split())[:80]!r}") from None


def reply_of(request: Request, data: Any, prices: Prices, seconds: float) -> Reply:
    """Read a reply (parsed JSON). Raises `Malformed` if it is not a chat completion. If it counts no tokens, or none
    although there is text, they are estimated, and the cost is the most that the call can have cost."""
    message, reason = _choice(data)
    message = in_fields(message)
    thinking = untagged(_text(message, "reasoning") or _text(message, "reasoning_content"))
    answer, refusal = _text(message, "content"), _text(message, "refusal")
    finish = FINISHES.get(reason, Finish.STOP)
    if refusal and not answer:
        answer, finish = refusal, Finish.REFUSED
    usage = data.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    prompt = _count(usage, "prompt_tokens", _prompt_estimate(request))
    reported = _reported_thinking(usage)
    # xAI and some Gemini proxies leave the thinking out of completion_tokens but bill it: then the total is larger.
    counts = _count(usage, "completion_tokens", 0), _count(usage, "total_tokens", 0) - prompt, reported or 0
    if (tokens := max(counts)) > 0 or (usage and not thinking + answer):
        bill = prices.bill(prompt, tokens, _cached_tokens(usage))
    else:
        bill = Bill(prompt, 0, estimate_tokens(thinking + answer), prices.most(request).cost)
    return Reply(thinking, answer, finish, bill, reported, seconds)


def untagged(thinking: str) -> str:
    """The thinking that a server has split off, without its tags. vLLM 0.32 leaves the opening one there while
    streaming, if the tag and other tokens come in one delta, as they do when it is busy; some gateways leave both."""
    inner = thinking.strip().removeprefix(OPEN).removesuffix(CLOSE)
    return inner.strip() if inner != thinking.strip() else thinking


def completion(request: Request, parts: Sequence[tuple[str, Reply]]) -> Completion:
    """The completion made by one call, or by several that continue each other. A part is (the prefix that the call was
    given, its reply)."""
    text, last = joined(*parts[-1]), parts[-1][1]
    counts = [_sampled_tokens(begun, reply) for begun, reply in parts]
    thinking_tokens, tokens = sum(n for n, _ in counts), sum(n for _, n in counts)
    given, inside = _given_tokens(request, parts)
    finish = Finish.EMPTY if last.finish is Finish.STOP and not text.strip() else last.finish
    return Completion(
        key=request.key,
        prompt=_prompt(request),
        prompt_ids=(),
        text=text,
        token_ids=(),
        logprobs=None,
        finish=finish,
        seconds=sum(reply.seconds for _, reply in parts),
        thinking_tokens=thinking_tokens + inside,
        answer_tokens=tokens - thinking_tokens + given - inside,
        prompt_tokens=parts[0][1].bill.prompt_tokens,
        cost=sum((reply.bill for _, reply in parts), NOTHING).cost,
    )


def joined(begun: str, reply: Reply) -> str:
    """The text of the response: the prefix that a call was given, continued by its reply."""
    thinking, answer = reply.thinking, reply.answer
    if not begun:
        answer = _without_copy(thinking, answer)
        cut = reply.finish is Finish.LENGTH and bool(thinking.strip()) and not answer
        return join_thinking(thinking.strip(), answer, closed=not cut)
    if not thinking or not is_open(begun):  # a server may call text thinking although the prefix closed it
        return begun + thinking + answer
    return f"{begun}{thinking}\n{CLOSE}\n\n{answer}" if answer or reply.finish is Finish.STOP else begun + thinking


def _without_copy(thinking: str, answer: str) -> str:
    """The answer without what some servers leave in it although they have split the thinking off: the thinking once
    more, or its tags alone. It would be taken for more thinking."""
    rest = split_thinking(answer)
    return rest.answer if thinking and CLOSE in answer and rest.closed and rest.thinking in thinking else answer


def refused(request: Request) -> Reply:
    """The reply to a prompt that a content filter refused."""
    return Reply("", "", Finish.REFUSED, NOTHING)


def cut_off() -> Reply:
    """The reply to a prefix that leaves no room in the model's context."""
    return Reply("", "", Finish.LENGTH, NOTHING)


def hides_thinking(reply: Reply) -> bool:
    """Whether the endpoint bills thinking that the reply does not contain."""
    return bool(reply.thinking_tokens) and not reply.thinking and OPEN not in reply.answer


def estimates_thinking(reply: Reply) -> bool:
    """Whether the thinking tokens of a reply are our estimate."""
    return not reply.thinking_tokens and bool(reply.thinking or OPEN in reply.answer or CLOSE in reply.answer)


def _sampled_tokens(begun: str, reply: Reply) -> tuple[int, int]:
    """(thinking tokens, all tokens) that a call sampled. If the endpoint reports no thinking tokens, they are estimated
    by the share of characters."""
    total = reply.bill.tokens
    if begun and not is_open(begun):
        return 0, total
    if reply.thinking_tokens and not begun:
        return min(reply.thinking_tokens, total), total
    parts = split_thinking(joined(begun, reply)[len(begun) :], opened=bool(begun))
    letters = len(parts.thinking) + len(parts.answer)
    return (round(total * len(parts.thinking) / letters) if letters else 0), total


def _given_tokens(request: Request, parts: Sequence[tuple[str, Reply]]) -> tuple[int, int]:
    """Estimated (tokens of the response that were given, not sampled; those of them that are thinking)."""
    given = inside = 0
    made = ""
    for begun, reply in parts:
        if not (piece := begun[len(made) :]):
            made = joined(begun, reply) if len(parts) > 1 else ""
            continue
        split = split_thinking(piece, opened=bool(made) and is_open(made))
        tokens = estimate_tokens(piece)
        given += tokens
        inside += tokens if is_open(begun) or not split.answer else tokens - estimate_tokens(split.answer)
        made = joined(begun, reply)
    return given, inside


def _prompt(request: Request) -> str:
    """The messages as sent; only the endpoint knows the rendered prompt."""
    return json.dumps([dict(message) for message in request.messages], ensure_ascii=False)


def _prompt_estimate(request: Request) -> int:
    return sum(estimate_tokens(message["content"]) for message in request.messages)


def _reported_thinking(usage: Mapping[str, Any]) -> int | None:
    """The endpoint's own count of thinking tokens. Some report 0 for truncated thinking, which counts as no report."""
    details = usage.get("completion_tokens_details")
    return _count(details, "reasoning_tokens", 0) or None if isinstance(details, Mapping) else None


def _cached_tokens(usage: Mapping[str, Any]) -> int:
    """Cached prompt tokens, as OpenAI and vLLM report them, or as DeepSeek does."""
    details = usage.get("prompt_tokens_details")
    cached = _count(details, "cached_tokens", 0) if isinstance(details, Mapping) else 0
    return cached or _count(usage, "prompt_cache_hit_tokens", 0)


def _choice(reply: Any) -> tuple[Mapping[str, Any], str]:
    """The first choice's message and finish reason."""
    if not isinstance(reply, Mapping):
        raise Malformed("the reply is not a JSON object")
    if reply.get("error"):
        raise Malformed(f"the reply is an error: {json.dumps(reply['error'], ensure_ascii=False)[:200]}")
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
        raise Malformed(f"the reply has no choices[0].message: {json.dumps(reply, ensure_ascii=False)[:200]}")
    reason = str(choice.get("finish_reason"))
    if reason in INTERRUPTED:
        raise Malformed(f"the server gave up midway (finish reason {reason})")
    return choice["message"], reason


def _text(message: Mapping[str, Any], field: str) -> str:
    value = message.get(field)
    if value is not None and not isinstance(value, str):
        raise Malformed(f"the reply's {field} is not text")
    return whole_letters(value or "")


def in_fields(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message, or a streamed piece of one, with text as its content. Mistral sends a list of parts instead; the
    thinking among them goes into its own field."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    found = {"thinking": "", "text": ""}
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in found:
            raise Malformed(f"the reply has a part of type {kind}; only text and thinking can be read")
        content = part.get(kind)
        found[kind] += in_fields({"content": content})["content"] if isinstance(content, list) else _text(part, kind)
    return {**message, "content": found["text"], "reasoning": _text(message, "reasoning") + found["thinking"]}


def _count(data: Mapping[str, Any], field: str, otherwise: int) -> int:
    value = data.get(field)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else otherwise
