"""Money and tokens, to the last digit: what calls took, and what they may take at the very most.

Prices are decimals as they stand in the YAML; a cost is a product of them with counts, so sums are exact and
a cap means what it says. The currency is whatever the prices are in.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from distill.engines.options import OpenAIOptions
from distill.types import Request

MILLIONTH = Decimal(1).scaleb(-6)
TEMPLATE_TOKENS = 64
"""Room for what a chat template puts around one message, where only an upper bound is known."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What calls took: ``cached_tokens`` of the ``prompt_tokens`` were cheaper, ``tokens`` are of the responses."""

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
    """Per million tokens: of a prompt, of the part of it that the endpoint had cached, of a response."""

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
        """What a call can take at the very most."""
        prompt = most_prompt_tokens(request)
        dearest = max(self.input, self.cached_input)
        return Bill(
            prompt, 0, request.sampling.max_tokens,
            (prompt * dearest + request.sampling.max_tokens * self.output) * MILLIONTH,
        )  # fmt: skip


def most_prompt_tokens(request: Request) -> int:
    """No tokenizer makes more tokens than there are bytes."""
    said = sum(len(message["content"].encode(errors="replace")) + TEMPLATE_TOKENS for message in request.messages)
    return said + (len(request.prefix.encode(errors="replace")) + TEMPLATE_TOKENS if request.prefix else 0)


def money(amount: Decimal) -> str:
    """For people: ``10``, ``0.0431``; no more than four decimals."""
    text = f"{amount:.4f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
