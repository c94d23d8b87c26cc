"""Advance many searches together, and count what each uses.

One call of the sampler serves all searches that wait for samples, one call of the scorer those that wait for scores,
and one call of the judge those that wait for verdicts, until none is left. So searches step by step take as many rounds
as one problem has steps, however many problems there are. A `World` samples, scores and judges; usage is counted here,
in the same way for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rl.search.allocation import JointSearch
from rl.search.base import Choice, Draft, Draw, Judge, Need, Piece, Score, Search


class World(Protocol):
    """Serves the needs of searches. The first of each pair is the number of the problem."""

    def draw(self, wanted: Sequence[tuple[int, Draft]]) -> list[Piece]: ...

    def score(self, pieces: Sequence[tuple[int, Piece]]) -> list[list[float]]: ...

    def judge(self, pieces: Sequence[tuple[int, Piece]]) -> list[bool]: ...


@dataclass(slots=True)
class Usage:
    """Tokens by kind (`rl.search.base`), and calls to the sampler. A trace that is requested twice in one search, or a
    text that is scored twice, counts once. The values of a mean are fractions."""

    prompt: float = 0
    sampled: float = 0
    scored: float = 0
    calls: float = 0

    @property
    def tokens(self) -> float:
        """Tokens computed for the answer, without the prompts: by the model that samples, and the one that scores."""
        return self.sampled + self.scored


@dataclass(slots=True)
class Result:
    choice: Choice
    usage: Usage


@dataclass(slots=True)
class _Meter:
    usage: Usage = field(default_factory=Usage)
    seen: set[tuple[str, str]] = field(default_factory=set)

    def drawn(self, piece: Piece) -> None:
        if self._is_new("drawn", piece.key):
            self.usage.calls += 1
            self.usage.prompt += piece.prompt_tokens
            self.usage.sampled += piece.tokens

    def scored(self, piece: Piece) -> None:
        if self._is_new("scored", piece.text):
            self.usage.scored += piece.prompt_tokens + piece.tokens

    def _is_new(self, what: str, name: str) -> bool:
        known = (what, name) in self.seen
        self.seen.add((what, name))
        return not known


@dataclass(slots=True)
class _Running:
    """A search in progress, and what it waits for."""

    problem: int
    search: Search
    need: Need | None = None
    choice: Choice | None = None
    meter: _Meter = field(default_factory=_Meter)

    def advance(self, answers: Sequence[Any] | None) -> None:
        for answer in answers or ():
            if isinstance(self.need, Draw):
                self.meter.drawn(answer)
        for piece in self.need.items if isinstance(self.need, Score) else ():
            self.meter.scored(piece)
        try:
            self.need = self.search.send(answers)
        except StopIteration as ended:
            self.need, self.choice = None, ended.value


def run(searches: Sequence[tuple[int, Search]], world: World) -> list[Result]:
    """The result of each (number of the problem, search), in their order."""
    going = [_Running(problem, search) for problem, search in searches]
    for each in going:
        each.advance(None)
    ask: dict[type[Need], Callable[[list[Any]], list[Any]]] = {Draw: world.draw, Score: world.score, Judge: world.judge}
    while any(each.need for each in going):
        for kind, served in ask.items():
            _serve([each for each in going if isinstance(each.need, kind)], served)
    return [Result(each.choice, each.meter.usage) for each in going if each.choice]


def _serve(waiting: Sequence[_Running], served: Callable[[list[Any]], list[Any]]) -> None:
    """Answer all of these, which have the same kind of need, with one call."""
    if not waiting:
        return
    wanted = [(each.problem, each.need.items if each.need else ()) for each in waiting]
    answers = served([(problem, item) for problem, items in wanted for item in items])
    at = 0
    for each, (_, items) in zip(waiting, wanted, strict=True):
        each.advance(answers[at : (at := at + len(items))])


def run_joint(search: JointSearch, problems: int, world: World) -> list[Result]:
    """The result for each problem of one search over all of them."""
    meters = [_Meter() for _ in range(problems)]
    pieces: list[Piece] | None = None
    while True:
        try:
            wanted = search.send(pieces)
        except StopIteration as ended:
            choices: list[Choice] = ended.value
            return [Result(choice, meter.usage) for choice, meter in zip(choices, meters, strict=True)]
        pieces = world.draw(wanted)
        for (number, _), piece in zip(wanted, pieces, strict=True):
            meters[number].drawn(piece)
