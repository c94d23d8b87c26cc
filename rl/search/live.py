"""Search for the answer to one question with an engine alone; nothing is stored. For `distill ask`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill import keys
from distill.engines.base import Engine
from distill.modelspec import Model
from distill.types import Asked, Problem, Request, Sampling, ThinkingBudget
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes
from rl.search.allocation import Allocation
from rl.search.base import Draft, Piece
from rl.search.beam import Tree
from rl.search.drive import Result, run
from rl.search.pieces import of_completion
from rl.search.scoring import FULL, Scorer, check_steps, likelihood_of, prm_of
from rl.search.settings import named

STEP, STOP = "line", "\n"
"""What a step is, and the text that ends one."""


@dataclass(frozen=True)
class LiveWorld:
    """A `rl.search.drive.World` in which every problem is the one question."""

    engine: Engine
    problem: Problem
    sampling: Sampling
    budget: ThinkingBudget | None
    scorer: Scorer | None

    def draw(self, wanted: Sequence[tuple[int, Draft]]) -> list[Piece]:
        asked = [self._request(draft) for _, draft in wanted]
        made = self.engine.generate({request.key: request for request in asked}.values())
        found = {completion.key: of_completion(completion) for completion in made}
        return [found[request.key] for request in asked]

    def _request(self, draft: Draft) -> Request:
        sampling = replace(self.sampling, temperature=0.0) if draft.greedy else self.sampling
        asked = Asked(self.problem.messages, draft.prefix, self.budget, STOP if draft.step else "")
        key = keys.trace_key(
            self.problem, self.engine.model, sampling, draft.index, keys.asked_key(self.problem, asked)
        )
        return Request(key, asked.messages, sampling, asked.prefix, asked.budget, asked.stop)

    def score(self, pieces: Sequence[tuple[int, Piece]]) -> list[list[float]]:
        assert self.scorer
        scorer, messages, rendered = self.scorer, self.problem.messages, self.engine.name != "openai"
        return scorer.open().score([(scorer.prompt(piece, messages, rendered), piece.text) for _, piece in pieces])

    def judge(self, pieces: Sequence[tuple[int, Piece]]) -> list[bool]:
        raise InputError("a question has no right answer to judge by")


class LiveSearch:
    """A strategy for one question, given by name or as in YAML. Raises `InputError` for one that cannot be used, before
    any model is loaded.

    ``prm`` is the directory of a process reward model, which must read the tokens of ``policy``; ``likelihood`` is a
    model whose own probability of each step is the score. Either is loaded in ``dtype``.
    """

    def __init__(
        self, spec: Any, samples: int, prm: Path | None, likelihood: Model | None, policy: Model | None = None,
        dtype: str = FULL,
    ) -> None:  # fmt: skip
        try:
            chosen = named(spec)
        except ValueError as error:
            raise InputError(f"--strategy: {error}") from None
        if isinstance(chosen.strategy, Allocation):
            raise InputError("--strategy allocate divides a total among many problems; for one question use adaptive")
        if "verifier" in chosen.strategy.needs:
            raise InputError(f"--strategy {chosen.label}: a question has no right answer to judge by")
        if chosen.by:
            raise InputError(
                f"--strategy {chosen.label}: for a question, --prm or --likelihood chooses the scorer; leave out `by`"
            )
        if "scorer" in chosen.strategy.needs and not (prm or likelihood):
            raise InputError(f"--strategy {chosen.label} needs a step scorer: --prm DIRECTORY or --likelihood MODEL")
        if isinstance(chosen.strategy, Tree):
            chosen.strategy.beams(samples)
        self._strategy, self._samples, self.label = chosen.strategy, samples, chosen.label
        self.samples_at_random = chosen.name != "greedy"
        self.needs_steps = "steps" in chosen.strategy.needs
        if (prm or likelihood) and "scorer" not in chosen.strategy.needs:
            raise InputError(f"--strategy {self.label} uses no step scorer; leave out --prm and --likelihood")
        self._scorer = prm_of(str(prm), Path(), {}, FileHashes(), policy, dtype) if prm else None
        self._scorer = likelihood_of(likelihood, STEP, dtype) if likelihood else self._scorer
        if self._scorer and self.needs_steps:
            check_steps(self._scorer, STEP, f"--strategy {self.label}")
        if self._scorer:
            self._scorer.check()

    def answer(self, engine: Engine, problem: Problem, sampling: Sampling, budget: ThinkingBudget | None) -> Result:
        world = LiveWorld(engine, problem, sampling, budget, self._scorer)
        return run([(0, self._strategy.search(self._samples))], world)[0]
