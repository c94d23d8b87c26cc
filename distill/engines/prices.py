"""Exact amounts of money and tokens: what calls took, and the most that they can take.

Prices are the decimals of the YAML, and a cost is a product of these and counts. So sums are exact, and a cap holds
exactly. The currency is that of the prices.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from distill.engines.options import OpenAIOptions
from distill.types import Request

MILLIONTH = Decimal(1).scaleb(-6)
TEMPLATE_TOKENS = 64
"""An upper bound for the tokens that a chat template puts around one message."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What calls took. ``cached_tokens`` of the ``prompt_tokens`` have a price of their own; ``tokens`` are sampled."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    cost: Decimal = Decimal(0)

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.tokens

    def __add__(self, other: Bill) -> Bill:
        return Bill(
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.tokens + other.tokens,
            self.cost + other.cost,
        )

    def __sub__(self, other: Bill) -> Bill:
        return Bill(
            self.prompt_tokens - other.prompt_tokens,
            self.cached_tokens - other.cached_tokens,
            self.tokens - other.tokens,
            self.cost - other.cost,
        )


NOTHING = Bill()


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices per million tokens: of a prompt, of the part of it that the endpoint had cached, and of a response."""

    input: Decimal = Decimal(0)
    cached_input: Decimal = Decimal(0)
    output: Decimal = Decimal(0)

    @classmethod
    def of(cls, options: OpenAIOptions) -> Prices:
        cached = options.price_cached_input
        return cls(options.price_input, options.price_input if cached is None else cached, options.price_output)

    def bill(self, prompt_tokens: int, tokens: int, cached_tokens: int = 0) -> Bill:
        cached = min(cached_tokens, prompt_tokens)
        cost = (prompt_tokens - cached) * self.input + cached * self.cached_input + tokens * self.output
        return Bill(prompt_tokens, cached, tokens, cost * MILLIONTH)

    def most(self, request: Request) -> Bill:
        """The most that a call can take."""
        prompt = most_prompt_tokens(request)
        dearest = max(self.input, self.cached_input)
        return Bill(
            prompt, 0, request.sampling.max_tokens,
            (prompt * dearest + request.sampling.max_tokens * self.output) * MILLIONTH,
        )  # fmt: skip


def most_prompt_tokens(request: Request) -> int:
    """An upper bound: no tokenizer makes more tokens than there are bytes."""
    tokens = sum(len(message["content"].encode(errors="replace")) + TEMPLATE_TOKENS for message in request.messages)
    return tokens + (len(request.prefix.encode(errors="replace")) + TEMPLATE_TOKENS if request.prefix else 0)


def money(amount: Decimal) -> str:
    """An amount for display: ``10``, ``0.0431``; at most four decimals."""
    text = f"{amount:.4f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
