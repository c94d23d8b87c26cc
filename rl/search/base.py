"""A search strategy: a generator that asks for samples, scores and verdicts, and returns its choice.

A strategy sees one problem and never an engine. It yields what it wants next (`Draw`, `Score`, `Judge`) and is sent
the results. So it is a pure function of the results, can be tested against enumeration, and thousands of searches
share one batch (`rl.search.drive`). A strategy that draws only whole responses is ``independent``: its samples are
the same that others draw of the problem, and cost nothing if they are stored.

Counts: ``prompt`` tokens are the input of a call (the prompt, and the beginning of a response that it continues),
``sampled`` tokens are its output, ``scored`` tokens are what a step scorer read. A cache saves time and changes no
count.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from distill.evaluation.voting import Sample
from distill.prm.scorer import Aggregate, log_aggregate
from distill.types import Finish
from pipeline.stage import Settings

Resource = Literal["scorer", "verifier", "steps"]
"""What a strategy may need beside samples: a step scorer, a verifier with a reference, an engine that can stop at the
end of a step."""
VERIFIER = "verifier"
"""Stands in ``by`` in place of a scorer's label."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A requested sample: number ``index`` of those that begin with ``prefix``. With ``step`` one step is enough, and
    ``greedy`` takes the likeliest tokens."""

    index: int = 0
    prefix: str = ""
    step: bool = False
    greedy: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A sample that was drawn: ``text`` is the whole response so far, its beginning included.

    ``ballot`` is its answer as counted in a vote; None if it has none (unfinished, cut off, or empty).
    ``prompt_tokens`` were given to the model, ``tokens`` were sampled. ``key`` is that of its trace.
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
    """Asks for these samples."""

    items: tuple[Draft, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Asks for the step probabilities of these."""

    items: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """Asks whether the verifier calls these correct."""

    items: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The result of a search: its answer is that of ``piece``. ``weights`` are the totals of all answers in a vote, the
    winner's first; ``score`` is the piece's, if it was chosen by score."""

    piece: Piece
    weights: tuple[tuple[str, float], ...] = ()
    score: float | None = None


Need = Draw | Score | Judge
Search = Generator[Need, Any, Choice]


class Strategy(Protocol):
    """Settings and the search that they describe. Registered by name in `distill.catalog`."""

    independent: ClassVar[bool]
    """Whether it draws only whole responses, each of which can replace any other."""

    @property
    def needs(self) -> frozenset[Resource]: ...

    def search(self, samples: int) -> Search:
        """Search with a budget of this many samples."""
        ...


@runtime_checkable
class Exact(Protocol):
    """A strategy of whole responses whose accuracy with k of n samples can be computed as the mean over all subsets of
    k, so that it need not be run on orders of the samples."""

    @property
    def needs(self) -> frozenset[Resource]: ...

    def takes(self, samples: int) -> int:
        """The number of responses that it draws with a budget of ``samples``."""
        ...

    def over_subsets(self, samples: Sequence[Sample], k: int) -> float:
        """The mean correctness of its choice among k of these. If it goes by scores, the samples carry the logarithms
        of the scores."""
        ...


class ByScore(Settings):
    """The settings of all strategies that go by step scores."""

    by: str | None = None
    """Whose scores: the label of one of the stage's `scorers`; by default each of them, a curve for each."""
    aggregate: Aggregate = "product"
    """What the step probabilities of a response come to."""


def draw(drafts: Sequence[Draft]) -> Generator[Need, Any, list[Piece]]:
    found: list[Piece] = yield Draw(tuple(drafts))
    return found


def score(pieces: Sequence[Piece], how: Aggregate) -> Generator[Need, Any, list[float]]:
    """The logarithm of one score for each piece."""
    steps: list[list[float]] = yield Score(tuple(pieces))
    return [log_aggregate(each, how) for each in steps]


def judge(pieces: Sequence[Piece]) -> Generator[Need, Any, list[bool]]:
    found: list[bool] = yield Judge(tuple(pieces))
    return found


def whole(samples: int, begin: int = 0) -> list[Draft]:
    """Drafts of whole responses, numbered from ``begin``."""
    return [Draft(index) for index in range(begin, begin + samples)]
