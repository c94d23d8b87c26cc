"""Thinking budgets at servers that cannot enforce them: plans the two calls that a response may take.

The first call is no longer than the thinking may be. If it ends inside the thinking, the second continues from there
with the thinking closed; if it ends in the answer, the second just continues. Both together, with the request's
prefix, stay within its ``max_tokens``. Pure functions, for `distill.engines.openai`.
"""

from __future__ import annotations

from dataclasses import replace

from distill.engines import chat, prices
from distill.engines.chat import Reply
from distill.engines.dialects import Dialect, is_open
from distill.thinking import OPEN, estimate_tokens, split_thinking
from distill.types import Finish, Request


def may_take_two(request: Request, dialect: Dialect) -> bool:
    """Whether the response may take two calls: it has a budget that we must enforce, and its thinking is not closed."""
    bounded = request.budget and request.budget.most is not None and not dialect.budget
    return bool(bounded) and not (request.prefix and not is_open(request.prefix))


def most_prompt_tokens(request: Request, dialect: Dialect) -> int:
    """The most prompt tokens that its calls can take together; a second call is sent what the first one made."""
    once = prices.most_prompt_tokens(request)
    if not may_take_two(request, dialect):
        return once
    assert request.budget and request.budget.most is not None
    closing = len(request.budget.closing.encode(errors="replace")) + prices.TEMPLATE_TOKENS
    return once + once + request.budget.most + closing


def first(request: Request, dialect: Dialect) -> Request:
    """The first call, often the only one. Its ``max_tokens`` limit what the call adds to the prefix."""
    budget = request.budget
    if not may_take_two(request, dialect):
        return _adding(request, _room(request))
    assert budget and budget.most is not None
    left = budget.most - estimate_tokens(split_thinking(request.prefix).thinking)
    if left <= 0:
        closed = replace(request, prefix=(request.prefix or f"{OPEN}\n") + budget.closing)
        return _adding(closed, _room(closed))
    return _adding(request, min(left, _room(request)))


def rest(request: Request, begun: Request, reply: Reply) -> Request | None:
    """The second call, after the first one (``begun``) returned ``reply``; None if there is nothing to continue."""
    room = _room(replace(request, prefix=begun.prefix))
    if begun.sampling.max_tokens >= room or reply.finish is not Finish.LENGTH or request.budget is None:
        return None
    text = chat.joined(begun.prefix, reply)
    closing = request.budget.closing if is_open(text) else ""
    left = room - reply.bill.tokens - estimate_tokens(closing)
    return _adding(replace(request, prefix=text + closing), left) if left > 0 else None


def _room(request: Request) -> int:
    """Tokens that a call may add. A given prefix counts towards the limit, by estimate as no tokenizer is known."""
    return max(1, request.sampling.max_tokens - estimate_tokens(request.prefix))


def _adding(request: Request, tokens: int) -> Request:
    if tokens == request.sampling.max_tokens:
        return request
    return replace(request, sampling=replace(request.sampling, max_tokens=tokens))
