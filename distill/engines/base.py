"""The engine protocol: requests in, completions out as they finish.

The teacher, the student in evaluation, the policy in GRPO and a judge are all engines. `generate` must stream: it
yields each completion as soon as it is finished, so that a killed process loses only what was in flight. An engine
never writes to the store and knows nothing of problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Any, Protocol

from distill.randomness import generator
from distill.thinking import Response, opened, split_thinking
from distill.types import Completion, Request
from pipeline.errors import InputError

Stopping = Callable[[], bool]


def never() -> bool:
    return False


class PromptTooLong(InputError):
    """A prompt that leaves no room for an answer, whatever prefix follows it; ``key`` is its request's."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key

    @classmethod
    def of(cls, key: str, tokens: int, limit: int) -> PromptTooLong:
        return cls(key, f"a prompt of {tokens} tokens leaves no room for an answer in the model's {limit}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the constructor's arguments instead of the message, so that it can be raised in another process."""
        return PromptTooLong, (self.key, str(self))


class NoSteps(InputError):
    """An engine was asked to end a response after a step, but cannot."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"engine {name} cannot stop at the end of a step, so it cannot search step by step; use the transformers "
            "or the vllm engine, or a strategy that takes whole responses (majority, best_of, weighted, adaptive)"
        )


class Engine(Protocol):
    name: str
    """The name it is registered under in `distill.catalog` ("transformers", "vllm", "openai")."""

    model: str
    """Identity of the weights (`distill.modelspec`); part of every trace key."""

    batch_invariant: bool
    """True if a sample is the same to the last bit, whatever else is in flight."""

    def generate(self, requests: Iterable[Request | None], stopping: Stopping = never) -> Iterator[Completion]:
        """Yield one completion for each request, in the order they finish. Keys must differ.

        ``requests`` is read as slots become free, never far ahead: later requests may depend on earlier completions.
        A None means that nothing is wanted just now: continue with what is running, and ask again after the next
        completion. It comes only while some request is unanswered (`distill.engines.feed`).

        ``stopping`` is called at least every second or so, also while nothing finishes. Once it returns True, the
        engine drops what is in flight and ends. The caller may stop iterating at any time, with the same effect.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class SoFar:
    """An unfinished response: its text so far, prefix included, and roughly its number of tokens."""

    prompt: str
    text: str
    tokens: int


class Streaming(Protocol):
    """An engine that can show a response while it is being generated."""

    def stream(self, request: Request) -> Iterator[SoFar | Completion]:
        """Yield the response so far a few times a second, then the completion. Stopping the iteration ends it."""
        ...


def streamed(engine: Engine, request: Request, note: Callable[[str], None]) -> Iterator[SoFar | Completion]:
    """As `Streaming.stream`. An engine that cannot stream yields the whole response at once, after a note."""
    if hasattr(engine, "stream"):
        yield from engine.stream(request)
        return
    note(f"engine {engine.name} shows no response while it is made: it comes whole")
    yield from engine.generate([request])


def wanted_now(requests: Iterator[Request | None], most: int) -> list[Request]:
    """The next requests, up to ``most`` (none if that is below 1: an engine may hold more than it asks for). Fewer at
    the end, or if nothing more is wanted just now."""
    return list(takewhile(lambda request: request is not None, islice(requests, max(most, 0))))  # type: ignore[arg-type]


def response_of(completion: Completion) -> Response:
    """Split into thinking and answer. Some templates open the thinking in the prompt already."""
    return split_thinking(completion.text, opened=opened(completion.prompt))


def seed_of(request: Request) -> int:
    """The seed (31 bits) for an engine with its own sampler. It depends on the request alone."""
    return int(generator("sample", request.sampling.seed, request.key).integers(2**31 - 1))
