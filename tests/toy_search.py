"""A world for searches in which everything can be enumerated: what is sampled, scored and judged are tables.

A response is a text of one-letter steps, each followed by a line break; ``says`` gives the step that sample ``index``
of a beginning makes, ``whole`` the answers of whole responses by index. A step costs one token, a whole response its
length; the prompt has ten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distill.types import Finish
from rl.search.base import Draft, Piece

PROMPT = 10


@dataclass
class ToyWorld:
    whole: Callable[[int, int], str | None] = lambda problem, index: str(index)
    says: Callable[[str, int], str] = lambda prefix, index: "abc"[index % 3]
    steps: int = 3
    values: Callable[[str], list[float]] = lambda text: [0.5] * len(text.split())
    right: str = "a"
    calls: list[int] = field(default_factory=list)
    """How many samples each call of `draw` was for."""

    def draw(self, wanted: Sequence[tuple[int, Draft]]) -> list[Piece]:
        self.calls.append(len(wanted))
        return [self._step(draft) if draft.step else self._whole(*each) for each in wanted for draft in [each[1]]]

    def _whole(self, problem: int, draft: Draft) -> Piece:
        answer = self.whole(problem, draft.index)
        finish = Finish.STOP if answer is not None else Finish.LENGTH
        text = answer or ""
        return Piece(f"{problem}/{draft.index}/{draft.greedy}", "p", text, text, answer, finish, PROMPT, len(text) + 1)

    def _step(self, draft: Draft) -> Piece:
        text = draft.prefix + self.says(draft.prefix, draft.index) + "\n"
        done = len(text.split()) == self.steps
        answer = text.split()[-1]
        key = f"{draft.prefix!r}/{draft.index}/{draft.greedy}"
        return Piece(
            key, "p", text, answer, answer if done else None, Finish.STOP if done else Finish.STEP,
            PROMPT + len(draft.prefix.split()), 1,
        )  # fmt: skip

    def score(self, pieces: Sequence[tuple[int, Piece]]) -> list[list[float]]:
        return [self.values(piece.text) for _, piece in pieces]

    def judge(self, pieces: Sequence[tuple[int, Piece]]) -> list[bool]:
        return [piece.ballot == self.right for _, piece in pieces]
