"""Who scores steps: as YAML says it, and found, by identity, loaded when the first text is to be scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationError

from distill.modelspec import Model, ModelName
from distill.prm import files
from distill.prm.scorer import StepScorer
from distill.types import Message
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Settings
from rl.search.base import Piece


class ByLikelihood(Settings):
    """Any model, whose own probability of each step is its score: nothing to train."""

    likelihood: ModelName


def _a_scorer(said: Any) -> str | ByLikelihood:
    if isinstance(said, str | ByLikelihood):
        return said
    if not isinstance(said, Mapping) or set(said) != {"likelihood"}:
        raise ValueError("expected a process reward model (prm:STAGE, or its directory), or {likelihood: MODEL}")
    try:
        return ByLikelihood.model_validate(said)
    except ValidationError as error:
        raise ValueError(f"likelihood: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _there(said: str | ByLikelihood) -> str | ByLikelihood:
    try:
        if isinstance(said, str) and not said.startswith(files.PREFIX):
            files.directory_of(said)
    except InputError as error:
        raise ValueError(f"{error}; or {{likelihood: MODEL}}") from None
    return said


ScorerSpec = Annotated[str | ByLikelihood, BeforeValidator(_a_scorer), AfterValidator(_there)]
"""A process reward model, ``prm:STAGE`` or its directory; or ``{likelihood: MODEL}``."""


@dataclass
class Scorer:
    """``load`` is slow."""

    identity: str
    load: Callable[[], StepScorer]
    _opened: list[StepScorer] = field(default_factory=list)

    def open(self) -> StepScorer:
        if not self._opened:
            self._opened.append(self.load())
        return self._opened[0]


def prompt_read(scorer: StepScorer, piece: Piece, messages: Sequence[Message], rendered: bool) -> str:
    """The prompt that a scorer reads before a response: the one the model saw; where that is an endpoint's secret
    (``rendered`` is False), by the scorer's own template."""
    return piece.prompt if rendered else str(scorer.render(messages))  # type: ignore[attr-defined]


def likelihood_of(model: Model, rule: str) -> Scorer:
    """How likely a model finds each step (`rl.search.likelihood`)."""

    def load() -> StepScorer:
        from rl.search.likelihood import open_likelihood

        return open_likelihood(model, rule)

    return Scorer(f"likelihood:{rule}:{model.identity}", load)


def prm_of(
    name: str, workspace: Path, inputs: Mapping[str, Manifest], hashes: FileHashes, policy: Model | None = None
) -> Scorer:
    """The process reward model that a stage made, or that lies in a directory. `InputError`, when it is opened, for
    one whose tokenizer is not that of ``policy``, whose prompts it is to read."""
    directory = files.directory_of(name, workspace, inputs)

    def load() -> StepScorer:
        loaded = import_module("distill.prm.reading").load(directory, name)
        if policy:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(policy.source, revision=policy.revision)
            loaded.check_reads(tokenizer, f"model {policy.source}")
        scorer: StepScorer = loaded
        return scorer

    return Scorer(f"prm:{hashes.of(directory)}", load)
