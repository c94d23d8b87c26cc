"""Thinking budgets, token by token: when to close the thinking, and when to undo its end and extend it.

A `Budget` is a request's `ThinkingBudget` in token ids. A `Course` tracks one response: the decoder passes
it each token, and the course decides whether to rewind, which token to force next, and whether the row ends.
Thinking tokens are counted as in `distill.thinking.count_thinking_tokens`: while thinking is open, every token
of the response so far counts.

If only one step is wanted, a course also ends the row once that step is complete (`StepEnd`).

Left out: tags that a tokenizer merges with their neighbours; in reasoning models, tags are tokens of their own.
Used by `distill.engines.decode` and `distill.engines.vllm_response`, only for rows that have a budget or end
after a step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from distill.thinking import CLOSE, OPEN

NOTHING = -1
"""Stands for no forced token: the next one is sampled."""


@dataclass(frozen=True, slots=True)
class Budget:
    """``open`` and ``close`` are the ids of the tags; ``opened`` is true if the chat template opens the thinking."""

    most: int | None
    least: int
    closing: tuple[int, ...]
    extension: tuple[int, ...]
    extensions: int
    open: tuple[int, ...]
    close: tuple[int, ...]
    opened: bool


UNBOUNDED = Budget(None, 0, (), (), 0, open=(), close=(), opened=False)
"""The budget of a row that has none and ends after a step."""


class StepEnd:
    """Detects the end of a step: ``stop``, preceded by something other than tags and white space.

    ``text_of`` decodes one token. If a token holds the stop and more text, that text belongs to the step too.
    """

    def __init__(self, stop: str, text_of: Callable[[int], str]) -> None:
        self._stop, self._text_of, self._text = stop, text_of, ""

    def ended(self, token: int) -> bool:
        before = len(self._text)
        self._text += self._text_of(token)
        at = self._text.find(self._stop, max(0, before + 1 - len(self._stop)))
        return at >= 0 and bool(self._text[:at].replace(OPEN, "").replace(CLOSE, "").strip())


class Course:
    """The state of one response. ``limit`` is its ``max_tokens``; ``given`` are the tokens it begins with."""

    def __init__(
        self, budget: Budget, limit: int, given: Sequence[int], stop_ids: Iterable[int], step: StepEnd | None = None
    ) -> None:
        self._budget, self._limit, self._stop_ids, self._step = budget, limit, frozenset(stop_ids), step
        self._tokens: list[int] = []
        self._queue: deque[int] = deque()
        self._extensions_left = budget.extensions
        self._inside = self._was_inside = budget.opened
        self._closing = False
        self._fixed = len(given)
        self.forced: list[int] = []
        self.over = False
        """The response ends here: its thinking is at the limit with no room left to close it, or a step is complete."""
        self.stepped = False
        """The response ended because a step is complete; it can be continued."""
        for token in given:
            self._note(token)
        self._close_if_due()

    @property
    def next(self) -> int:
        """The token that is forced next, or `NOTHING` if it is sampled."""
        return self._queue[0] if self._queue else NOTHING

    def take(self, token: int) -> int | None:
        """Record the next token. If this returns a number, only that many tokens stand: rewind and go on from there."""
        at = len(self._tokens)
        self._note(token)
        if self._queue:
            self._queue.popleft()
            self.forced.append(at)
            self._fixed = at + 1
        elif (end := self._end(at)) is not None and end < self._budget.least and self._extensions_left:
            self._extensions_left -= 1
            self._inside = True
            del self._tokens[end:]
            self._queue.extend(self._budget.extension)
            self._close_if_due()
            return end
        if token not in self._stop_ids:
            self._close_if_due()
            if self._step and self._step.ended(token):
                self.stepped = self.over = True
        return None

    @property
    def length(self) -> int:
        return len(self._tokens)

    def last(self, begun: int) -> int:
        """The last token, or ``begun`` if there is none yet."""
        return self._tokens[-1] if self._tokens else begun

    def _note(self, token: int) -> None:
        self._was_inside = self._inside
        self._tokens.append(token)
        if self._ends_with(self._budget.close):
            self._inside = self._closing = False
        elif self._ends_with(self._budget.open):
            self._inside = True

    def _end(self, at: int) -> int | None:
        """If the token at ``at`` ended the thinking: the index where the closing tag, or the stop token, begins."""
        if not self._was_inside:
            return None
        if not self._inside:
            begin = at + 1 - len(self._budget.close)
            return begin if begin >= self._fixed else None
        return at if self._tokens[at] in self._stop_ids else None

    def _close_if_due(self) -> None:
        most, count = self._budget.most, len(self._tokens)
        if not self._inside or self._closing or most is None or count < most:
            return
        if self._limit - count < len(self._budget.closing) + 1:
            self.over = True
        else:
            self._closing = True
            self._queue = deque(self._budget.closing)

    def _ends_with(self, piece: tuple[int, ...]) -> bool:
        return bool(piece) and tuple(self._tokens[-len(piece) :]) == piece
