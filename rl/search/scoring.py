"""Step scorers: their settings in YAML, their identities, and loading them when the first text is to be scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationError

from distill.modelspec import MODEL, Model, ModelName
from distill.pretrained import tokenizer_of
from distill.prm import files
from distill.prm.scorer import VERSION, StepScorer
from distill.types import Message
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Input, Settings, later
from rl.search.base import Piece

FULL = "float32"
Dtype = Literal["float32", "bfloat16"]


class ByReward(Settings):
    """A process reward model with settings beside its name."""

    model: Annotated[str, Input(accepts=("prm",), prefix=files.PREFIX)]
    """`prm:STAGE`, or the directory of a `prm` stage's result."""
    dtype: Dtype = later(FULL)
    """`bfloat16` takes half the memory and is meant for GPUs, whose bfloat16 products are faster."""


class ByLikelihood(Settings):
    """Any model, whose own probability of each step is its score: nothing to train."""

    likelihood: ModelName
    dtype: Dtype = later(FULL)
    """As for a reward model."""


ScorerName = str | ByReward | ByLikelihood
KINDS: Mapping[str, type[ByReward | ByLikelihood]] = {"model": ByReward, "likelihood": ByLikelihood}
"""The settings by the key that names the scorer."""


def _parse(spec: Any) -> ScorerName:
    """Parse a scorer. A reward model with nothing but its name becomes that name, in whichever form it was given."""
    if isinstance(spec, str | ByReward | ByLikelihood):
        return spec
    who = [key for key in KINDS if key in spec] if isinstance(spec, Mapping) else []
    if len(who) != 1:
        raise ValueError(
            "expected a process reward model (prm:STAGE, or its directory; {model: prm:STAGE, dtype: bfloat16}), or "
            "{likelihood: MODEL}"
        )
    try:
        found = KINDS[who[0]].model_validate(spec)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
    return found.model if isinstance(found, ByReward) and found.dtype == FULL else found


def reward_model(spec: str | ByReward) -> tuple[str, str]:
    """Its name and dtype."""
    return (spec, FULL) if isinstance(spec, str) else (spec.model, spec.dtype)


def _check_exists(spec: ScorerName) -> ScorerName:
    if isinstance(spec, ByLikelihood):
        return spec
    name, _ = reward_model(spec)
    try:
        if not name.startswith(files.PREFIX):
            files.directory_of(name)
    except InputError as error:
        raise ValueError(f"{error}; or {{likelihood: MODEL}}") from None
    return spec


ScorerSpec = Annotated[ScorerName, BeforeValidator(_parse), AfterValidator(_check_exists)]
"""A process reward model, ``prm:STAGE`` or its directory, or ``{model: prm:STAGE, dtype: bfloat16}``; or
``{likelihood: MODEL}``, with a ``dtype`` too."""


def nothing() -> None:
    """The check of a scorer that can read any text."""


@dataclass
class Scorer:
    """A step scorer that is loaded on first use; ``load`` and ``identify`` are slow. ``rule`` is how it splits a
    response into steps; ``model`` is what is loaded, in ``dtype``. With ``own_template`` it renders problems with its
    own template, whichever model answers. ``check`` raises `InputError` if it cannot read the model's responses."""

    identify: Callable[[], str]
    rule: str
    load: Callable[[], StepScorer]
    model: Model
    dtype: str = FULL
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
        """The text to read before a response: the prompt that the model saw. If that is unknown (an endpoint's;
        ``rendered`` is False) or in another model's format, the scorer's own template renders the problem."""
        if rendered and not self.own_template:
            return piece.prompt
        return str(self.open().render(messages))  # type: ignore[attr-defined]


def unloaded(scorers: Iterable[Scorer]) -> list[tuple[Model, str]]:
    """The models of those scorers that have yet to take up memory, with their dtypes."""
    return [(scorer.model, scorer.dtype) for scorer in scorers if not scorer._opened]


def likelihood_of(model: Model, rule: str, dtype: str = FULL) -> Scorer:
    """A scorer by how likely a model finds each step (`rl.search.likelihood`)."""

    def load() -> StepScorer:
        from distill import pretrained
        from rl.search.likelihood import Likelihood

        return Likelihood(*pretrained.load(model, dtype), rule)

    def identify() -> str:
        return f"likelihood:{VERSION}:{rule}:{model.identity}{_dtype_suffix(dtype)}"

    return Scorer(identify, rule, load, model, dtype, own_template=True)


def prm_of(
    name: str, workspace: Path, inputs: Mapping[str, Manifest], hashes: FileHashes, policy: Model | None = None,
    dtype: str = FULL,
) -> Scorer:  # fmt: skip
    """The process reward model that a stage made, or that lies in a directory. Its ``check`` refuses a tokenizer that
    is not that of ``policy``, whose prompts it has to read."""
    directory = files.directory_of(name, workspace, inputs)

    def check() -> None:
        if policy:
            files.check_reads(directory, name, tokenizer_of(policy), f"model {policy.source}")

    def load() -> StepScorer:
        scorer: StepScorer = import_module("distill.prm.reading").load(directory, name, dtype=dtype)
        return scorer

    def identify() -> str:
        return f"prm:{VERSION}:{files.identity_of(directory, hashes)}{_dtype_suffix(dtype)}"

    body, rule = Model(str(directory / MODEL), ""), files.about(directory, name).rule
    return Scorer(identify, rule, load, body, dtype, check=check)


def _dtype_suffix(dtype: str) -> str:
    """The ``dtype`` in an identity: nothing for the one that all scores had before the setting existed."""
    return "" if dtype == FULL else f":{dtype}"


def check_steps(scorer: Scorer, step: str, who: str) -> None:
    """Raise `InputError` if a search by ``step`` would be scored by other steps than its own."""
    if scorer.rule != step:
        raise InputError(
            f"{who} searches by the {step}, but the reward model splits steps by another rule ({scorer.rule}); use "
            f"one that was trained with `steps: {step}`"
        )
