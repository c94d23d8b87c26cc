"""`prm`: a process reward model scores each step of a response, thinking included; the score combines them.

    prm: {model: prm:STAGE, threshold: 0.5, aggregate: product}

A reward model only estimates, however confident it is. Choosing the best of many responses by it also selects its
mistakes (the report's curves show how many). It reads only the response, never the reference. The evidence has
the scores of all steps, so another aggregate can be computed from the store. The version covers the model's
weights; their location is not part of any key. The stages that take a verifier resolve ``prm:STAGE``
(`distill.stages.common.resolved`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from distill.prm import files
from distill.prm.scorer import VERSION, Aggregate, aggregate
from distill.steps import split
from distill.thinking import Response, join_thinking
from distill.types import Outcome, Problem, Verdict
from distill.verifiers.base import Key, Note, Stopping, never, silent
from distill.verifiers.settings import settings_of
from pipeline.fingerprint import FileHashes
from pipeline.stage import Settings

if TYPE_CHECKING:
    from distill.prm.reading import PrmScorer

AT_A_TIME = 256
"""Responses scored between two checks for a stop."""


class PrmSettings(Settings):
    model: str
    """`prm:STAGE`, or the directory of a `prm` stage's result."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Minimum score of a correct response."""
    aggregate: Aggregate = "product"
    """How the steps' probabilities are combined into the score."""
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"


class Prm:
    """The `prm` verifier, with `PrmSettings`. `distill.verifiers.base` describes the protocol."""

    name: ClassVar[str] = "prm"
    reads_thinking: ClassVar[bool] = True
    reads_files: ClassVar[bool] = True
    settings_model: ClassVar[type[PrmSettings]] = PrmSettings

    def __init__(self, hashes: FileHashes | None = None, **settings: Any) -> None:
        self.settings = settings_of(self.name, PrmSettings, settings)
        self._hashes = hashes or FileHashes()
        self.standing = not self.settings.model.startswith(files.PREFIX)
        """Whether it can be opened: not while the model is the unresolved name of a stage."""
        if self.standing:
            self.directory = files.directory_of(self.settings.model)

    @cached_property
    def version(self) -> str:
        return f"{VERSION}+{files.identity_of(self.directory, self._hashes)[:12]}" if self.standing else "1"

    @property
    def settled(self) -> dict[str, Any]:
        """The settings that change a verdict. The weights are covered by the version."""
        wanted = {"threshold", "aggregate", "dtype"}
        return self.settings.model_dump(mode="json", include=wanted, exclude_defaults=True)

    def quick(self, problem: Problem, trace: Response) -> Verdict | None:
        """The verdict on a response without steps, which needs no model."""
        return None if split(_text(trace)) else Verdict.incorrect("there is no step")

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        """One verdict, with the model loaded for it alone."""
        if quick := self.quick(problem, trace):
            return quick
        with closing(self.open()) as session:
            ((_, verdict),) = session.judge([(None, problem, trace)])
        return verdict

    def open(self, note: Note = silent) -> PrmSession:
        if not self.standing:
            files.directory_of(self.settings.model)  # raises: a stage's name cannot be used here
        return PrmSession(self)

    def verdict(self, texts: Sequence[str], probabilities: Sequence[float]) -> Verdict:
        score = aggregate(probabilities, self.settings.aggregate)
        right = score >= self.settings.threshold
        worst = min(range(len(probabilities)), key=probabilities.__getitem__)
        reason = f"{self.settings.aggregate} of {len(texts)} steps is {score:.3g}; least sure of step {worst + 1}"
        steps = [{"text": text, "probability": round(p, 6)} for text, p in zip(texts, probabilities, strict=True)]
        evidence = {"aggregate": self.settings.aggregate, "threshold": self.settings.threshold, "steps": steps}
        return Verdict(Outcome.CORRECT if right else Outcome.INCORRECT, score, reason, evidence)


class PrmSession:
    """A reward model, loaded for the first item and kept until it is closed."""

    def __init__(self, verifier: Prm) -> None:
        self._verifier = verifier
        self._scorer: PrmScorer | None = None

    def judge(
        self, items: Sequence[tuple[Key, Problem, Response]], stopping: Stopping = never
    ) -> Iterator[tuple[Key, Verdict]]:
        """Yield verdicts as `distill.verifiers.base.Session` specifies."""
        for first in range(0, len(items), AT_A_TIME):
            if stopping():
                return
            yield from self._judge_chunk(items[first : first + AT_A_TIME])

    def close(self) -> None:
        self._scorer = None

    def _judge_chunk(self, items: Sequence[tuple[Key, Problem, Response]]) -> Iterator[tuple[Key, Verdict]]:
        from distill.prm.reading import TooLong, load

        if self._scorer is None:
            settings = self._verifier.settings
            self._scorer = load(self._verifier.directory, settings.model, settings.device, settings.dtype)
        asked: list[tuple[Key, tuple[str, str], tuple[str, ...]]] = []
        for key, problem, trace in items:
            pair = self._scorer.prompt(problem), _text(trace)
            try:
                texts = self._scorer.encoded(*pair).texts
            except TooLong as error:
                yield key, Verdict.unverifiable(f"too long: {error}")
            else:
                asked.append((key, pair, texts))
        scores = self._scorer.score([pair for _, pair, _ in asked])
        for (key, _, texts), probabilities in zip(asked, scores, strict=True):
            yield key, self._verifier.verdict(texts, probabilities)


def _text(trace: Response) -> str:
    return join_thinking(trace.thinking, trace.answer, trace.closed)
