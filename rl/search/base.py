"""What a search strategy is: a generator that asks for samples, scores and verdicts, and returns its choice.

A strategy sees one problem and never an engine. It yields what it wants next (`Draw`, `Score`, `Judge`) and is sent
what came of that; so it is a pure function of the answers, can be held against enumeration, and thousands of
searches share one batch (`rl.search.drive`). A strategy that only ever draws whole responses is ``independent``: its
samples are those that anybody else has drawn of the problem, and where they are stored it costs nothing.

What is counted: ``prompt`` tokens are what a call was given (the prompt, and of a begun response its beginning),
``sampled`` those that it added, ``scored`` what a step scorer read. A cache saves time and changes no count.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from distill.prm.scorer import Aggregate, log_aggregate
from distill.types import Finish
from distill.voting import Sample
from pipeline.stage import Settings

Resource = Literal["scorer", "verifier", "steps"]
"""What a strategy may need beside samples: a step scorer, a verifier with a reference, an engine that stops at the
ends of steps."""
VERIFIER = "verifier"
"""In place of a scorer's label."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A sample wanted: number ``index`` of those that begin with ``prefix``; with ``step`` one step of it is enough,
    and ``greedy`` takes the likeliest tokens."""

    index: int = 0
    prefix: str = ""
    step: bool = False
    greedy: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A sample that came: ``text`` is the whole response so far, its beginning included.

    ``ballot`` is its answer as it is counted in a vote; None where it has none (unfinished, cut, silent).
    ``prompt_tokens`` were given to the model, ``tokens`` sampled. ``key`` is that of its trace.
    """

    key: str
    prompt: str
    text: str
    answer: str
    ballot: str | None
    finish: Finish
    prompt_tokens: int
    tokens: int

    @property
    def over(self) -> bool:
        return self.finish is not Finish.STEP


@dataclass(frozen=True, slots=True)
class Draw:
    """These samples."""

    items: tuple[Draft, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Step probabilities of these."""

    items: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """Whether the verifier calls these correct."""

    items: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer of a search is that of ``piece``, the trace it rests on. ``weights`` are what each answer had for it
    in a vote, the winner's first; ``score`` is the piece's, where it was chosen by that."""

    piece: Piece
    weights: tuple[tuple[str, float], ...] = ()
    score: float | None = None


Need = Draw | Score | Judge
Search = Generator[Need, Any, Choice]


class Strategy(Protocol):
    """Settings, and the search that they describe. Registered by name in `distill.catalog`."""

    independent: ClassVar[bool]
    """It draws whole responses only, and any of them may stand for any other."""

    @property
    def needs(self) -> frozenset[Resource]: ...

    def search(self, samples: int) -> Search:
        """With a budget of so many samples."""
        ...


@runtime_checkable
class Exact(Protocol):
    """A strategy of whole responses whose accuracy with k of n samples is known, as the mean over all subsets of k: no
    order of the samples is drawn for it."""

    @property
    def needs(self) -> frozenset[Resource]: ...

    def takes(self, samples: int) -> int:
        """How many responses it draws with a budget."""
        ...

    def over_subsets(self, samples: Sequence[Sample], k: int) -> float:
        """The mean correctness of its choice among k of these. Where it asks for scores, they carry the
        logarithms of these."""
        ...


class ByScore(Settings):
    """What all strategies have that go by the scores of steps."""

    by: str | None = None
    """Whose scores: the label of one of the stage's `scorers`; by default each of them, a curve for each."""
    aggregate: Aggregate = "product"
    """What the step probabilities of a response come to."""


def draw(drafts: Sequence[Draft]) -> Generator[Need, Any, list[Piece]]:
    found: list[Piece] = yield Draw(tuple(drafts))
    return found


def score(pieces: Sequence[Piece], how: Aggregate) -> Generator[Need, Any, list[float]]:
    """The logarithm of one score for each."""
    steps: list[list[float]] = yield Score(tuple(pieces))
    return [log_aggregate(each, how) for each in steps]


def judge(pieces: Sequence[Piece]) -> Generator[Need, Any, list[bool]]:
    found: list[bool] = yield Judge(tuple(pieces))
    return found


def whole(samples: int, begin: int = 0) -> list[Draft]:
    """Whole responses, by number."""
    return [Draft(index) for index in range(begin, begin + samples)]
