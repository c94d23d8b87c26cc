"""The domain types: problem, sampling, request, completion, trace, verdict.

Plain frozen records, importable without torch or DuckDB. `distill.keys` makes their keys and `distill.store` stores
them; nothing here depends on either. All other modules import the types from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

Message = Mapping[str, str]
"""One chat turn: ``{"role": "user", "content": "..."}``."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A question whose answer can be checked.

    ``id`` is stable and readable: a source and a hash of the content (``calc/3f9a1c...``), so a row added at the top of
    a file renames nothing. ``origin`` is the file and line it was first read from. ``reference`` is what the verifier
    named ``verifier`` compares with: an answer, or tests as JSON text. ``structure`` names the underlying function,
    chain or formula; problems with the same structure are never on both sides of a train/held-out split.
    ``difficulty`` is the number of steps in a family, otherwise the source's own number, or None if unknown.
    """

    id: str
    prompt: str
    reference: str
    verifier: str
    source: str
    split: str = "train"
    difficulty: int | None = None
    licence: str = "unknown"
    structure: str | None = None
    system: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    origin: str = ""

    @property
    def name(self) -> str:
        """The id for messages, with the file and line if there are any."""
        return f"{self.id} ({self.origin})" if self.origin else self.id

    @property
    def messages(self) -> tuple[Message, ...]:
        user = {"role": "user", "content": self.prompt}
        return ({"role": "system", "content": self.system}, user) if self.system else (user,)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. ``max_tokens`` counts everything after the prompt. ``temperature`` 0 is greedy.

    ``top_k`` 0 and ``top_p`` 1 mean no truncation (which RL needs: truncated sampling biases the
    importance ratios).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 512
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """How long a response may and must think, in thinking tokens.

    After ``most`` tokens the thinking is closed with ``closing`` and the model writes its answer (early exit). If the
    model ends its thinking before ``least`` tokens, the end is replaced by ``extension``, at most ``extensions`` times
    (budget forcing, s1, https://arxiv.org/abs/2501.19393).
    """

    most: int | None = None
    least: int = 0
    closing: str = "\n</think>\n\n"
    extension: str = "\nWait"
    extensions: int = 8

    @property
    def settled(self) -> Mapping[str, Any]:
        """The part that can change a response, as plain data for keys. Empty without bounds."""
        early = {} if self.most is None else {"most": self.most, "closing": self.closing}
        forced = {"least": self.least, "extension": self.extension, "extensions": self.extensions}
        return early | (forced if self.least > 0 and self.extensions > 0 else {})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked, apart from sampling: a problem rendered with the user's settings (`distill.prompting`).
    The fields are those of `Request`."""

    messages: tuple[Message, ...]
    prefix: str = ""
    budget: ThinkingBudget | None = None
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One sample wanted from an engine. ``key`` names it and seeds its random draws.

    ``prefix`` is the start of the response, given and not sampled (prefilled thinking, or a cut response to be
    continued). The completion's text and token ids contain it, and it counts towards ``max_tokens``. ``stop`` is the
    text that ends a step: sampling ends after it with `Finish.STEP`, unless it follows only white space and think tags.
    """

    key: str
    messages: tuple[Message, ...]
    sampling: Sampling
    prefix: str = ""
    budget: ThinkingBudget | None = None
    stop: str = ""


class Finish(StrEnum):
    """Why a sample ended. The outcomes are exclusive."""

    STOP = "stop"  # the end-of-turn token
    LENGTH = "length"  # max_tokens reached
    REFUSED = "refused"  # an endpoint's content filter
    EMPTY = "empty"  # ended at once without any text
    STEP = "step"  # the requested step is complete; the response may be continued


@dataclass(frozen=True, slots=True)
class Completion:
    """An engine's result for one request. ``token_ids`` and ``logprobs`` have equal length.

    ``logprobs`` are natural logs under the distribution sampled from (after temperature), and include the end token's.
    ``prompt_ids`` are the ids that the engine really saw. ``thinking_tokens`` of the tokens are thinking
    (`distill.thinking.count_thinking_tokens`, or an endpoint's own count).

    An endpoint that returns no token ids leaves both empty and gives counts instead; ``answer_tokens`` and
    ``prompt_tokens`` are None if the ids are there to be counted. ``cost`` is in the currency of the price settings.
    ``forced`` are the positions in ``token_ids`` that were not sampled: the request's prefix, and what its thinking
    budget inserted. Their logprobs are the model's own.
    """

    key: str
    prompt: str
    prompt_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish: Finish
    seconds: float = 0.0
    thinking_tokens: int = 0
    answer_tokens: int | None = None
    prompt_tokens: int | None = None
    cost: Decimal = Decimal(0)
    forced: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of thinking and answer together."""
        return len(self.token_ids) if self.answer_tokens is None else self.thinking_tokens + self.answer_tokens


@dataclass(frozen=True, slots=True)
class Trace:
    """One sampled response to a problem, as kept in the store. Token counts are those of the response.

    ``thinking`` is the text inside the think tags, ``answer`` the text after them (or the whole text without tags).
    ``closed`` is whether the thinking ended. A response cut off inside its thinking has an empty answer. If
    ``prompt_tokens`` is None, count ``prompt_ids``.

    ``prefix``, ``budget`` and ``forced`` are as in `Request` and `Completion`. ``cut`` is the exact text of a response
    that may be continued, because it ended at max_tokens or after a step. ``continues`` is the key of the cut trace
    that this one continues.
    """

    key: str
    model: str
    engine: str
    sampling: Sampling
    sample_index: int
    prompt: str
    thinking: str
    answer: str
    closed: bool
    thinking_tokens: int
    answer_tokens: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish: Finish
    seconds: float = 0.0
    prompt_tokens: int | None = None
    prefix: str = ""
    budget: ThinkingBudget | None = None
    forced: tuple[int, ...] = ()
    cut: str | None = None
    continues: str | None = None

    @property
    def tokens(self) -> int:
        return self.thinking_tokens + self.answer_tokens


class Outcome(StrEnum):
    """The result of a verifier. ``unverifiable`` is neither a reward nor a punishment."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNVERIFIABLE = "unverifiable"


class Failure(StrEnum):
    """Why a verifier did not come to a verdict, other than by abstaining itself."""

    TIMEOUT = "timeout"  # more CPU or wall time than a verdict may take
    MEMORY = "memory"  # the verifier ran out of memory
    CRASH = "crash"  # the process it ran in ended
    ERROR = "error"  # it raised an exception
    INPUT = "input"  # there was nothing to judge: a row of a file that cannot be read

    @property
    def may_pass(self) -> bool:
        """Whether another attempt may succeed, because the machine may be to blame."""
        return self in (Failure.TIMEOUT, Failure.MEMORY, Failure.CRASH)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict of one version of one verifier on one trace.

    ``score`` is in [0, 1], or None if unverifiable. ``reason`` is one line for people. ``evidence`` is plain data
    (JSON) that shows how the verdict came about.
    """

    outcome: Outcome
    score: float | None
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    verifier: str = ""
    version: str = ""
    seconds: float = 0.0

    @classmethod
    def correct(cls, reason: str, **evidence: Any) -> Verdict:
        return cls(Outcome.CORRECT, 1.0, reason, evidence)

    @classmethod
    def incorrect(cls, reason: str, **evidence: Any) -> Verdict:
        return cls(Outcome.INCORRECT, 0.0, reason, evidence)

    @classmethod
    def unverifiable(cls, reason: str, **evidence: Any) -> Verdict:
        return cls(Outcome.UNVERIFIABLE, None, reason, evidence)

    @classmethod
    def failed(cls, failure: Failure, reason: str) -> Verdict:
        """Unverifiable because of a `Failure`, which the evidence holds under ``failure``."""
        return cls.unverifiable(reason, failure=str(failure))

    @property
    def failure(self) -> Failure | None:
        found = self.evidence.get("failure")
        return None if found is None else next((failure for failure in Failure if failure == found), None)
