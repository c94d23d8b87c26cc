"""Who scores steps: as YAML says it, and found, by identity, loaded when the first text is to be scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationError

from distill.modelspec import MODEL, Model, ModelName
from distill.pretrained import tokenizer_of
from distill.prm import files
from distill.prm.scorer import VERSION, StepScorer
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


def nothing() -> None:
    """The check of a scorer that reads whatever there is."""


@dataclass
class Scorer:
    """``load`` is slow, and so is ``identify``. ``rule`` is how it splits a response into steps; ``model`` is what is
    loaded, in full precision; ``own_template``, that it reads problems in its own words, whoever answers. ``check``
    raises `InputError` where it cannot read what it should."""

    identify: Callable[[], str]
    rule: str
    load: Callable[[], StepScorer]
    model: Model
    own_template: bool = False
    check: Callable[[], None] = nothing
    _opened: list[StepScorer] = field(default_factory=list)

    @cached_property
    def identity(self) -> str:
        return self.identify()

    def open(self) -> StepScorer:
        if not self._opened:
            self._opened.append(self.load())
        return self._opened[0]

    def prompt(self, piece: Piece, messages: Sequence[Message], rendered: bool) -> str:
        """What is read before a response: the prompt that the model saw; where that is an endpoint's secret
        (``rendered`` is False), or another model's language, by the scorer's own template."""
        if rendered and not self.own_template:
            return piece.prompt
        return str(self.open().render(messages))  # type: ignore[attr-defined]


def likelihood_of(model: Model, rule: str) -> Scorer:
    """How likely a model finds each step (`rl.search.likelihood`)."""

    def load() -> StepScorer:
        from rl.search.likelihood import open_likelihood

        return open_likelihood(model, rule)

    return Scorer(lambda: f"likelihood:{VERSION}:{rule}:{model.identity}", rule, load, model, own_template=True)


def prm_of(
    name: str, workspace: Path, inputs: Mapping[str, Manifest], hashes: FileHashes, policy: Model | None = None
) -> Scorer:
    """The process reward model that a stage made, or that lies in a directory. Its ``check`` refuses one whose
    tokenizer is not that of ``policy``, whose prompts it is to read."""
    directory = files.directory_of(name, workspace, inputs)

    def check() -> None:
        if policy:
            files.check_reads(directory, name, tokenizer_of(policy), f"model {policy.source}")

    def load() -> StepScorer:
        scorer: StepScorer = import_module("distill.prm.reading").load(directory, name)
        return scorer

    def identify() -> str:
        return f"prm:{VERSION}:{files.identity_of(directory, hashes)}"

    return Scorer(identify, files.about(directory, name).rule, load, Model(str(directory / MODEL), ""), check=check)


def check_steps(scorer: Scorer, step: str, who: str) -> None:
    """`InputError` where a search by ``step`` would be scored by other steps than its own."""
    if scorer.rule != step:
        raise InputError(
            f"{who} goes on by the {step}, and the steps of the reward model are another rule's ({scorer.rule}); take "
            f"one that was trained with `steps: {step}`"
        )
