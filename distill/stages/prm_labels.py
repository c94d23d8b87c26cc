"""The settings for a prm stage's sources of step labels. `distill.stages.labelling` gathers the labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from distill.engines import dialects
from distill.engines.options import (
    EngineOptions,
    OpenAIOptions,
    SamplingSettings,
    Seed,
    TransformersOptions,
    check_model,
)
from distill.modelspec import StageOrName
from distill.stages.common import RewardModel, VerifierSpec
from pipeline.stage import File, Input, Operational, Settings

Verdicts = Annotated[str, Input(accepts=("verdicts",))]


class ExactLabels(Settings):
    """Judged traces, each line checked by the problem's family."""

    exact: Verdicts


class SlipLabels(Settings):
    """Solutions by the families' authors with planted mistakes: exact labels without sampling."""

    slips: Annotated[str, Input(accepts=("problems",))]
    chance: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Probability that a line gets a wrong result."""
    each: Annotated[int, Field(ge=1)] = 1
    """Worked solutions per problem."""


class RolloutLabels(Settings):
    """Judged traces whose prefixes are completed by a policy, and the completions judged (Math-Shepherd)."""

    rollouts: Verdicts
    policy: StageOrName
    """The model that completes the prefixes; normally the one whose traces they are."""
    engine: EngineOptions = TransformersOptions()
    samples: Annotated[int, Field(ge=1)] = 4
    """Completions per prefix."""
    search: Literal["every", "first_error"] = "every"
    """Complete `every` prefix, or only those that a binary search for the `first_error` needs."""
    kind: Literal["hard", "soft"] = "soft"
    """`hard`: whether any completion is right. `soft`: the share that is. (`first_error` is always hard.)"""
    sampling: SamplingSettings = SamplingSettings()
    """`max_tokens` includes the prefix."""
    verifier: Annotated[VerifierSpec | None, RewardModel] = None
    """Judges the completions. Default: each problem's own verifier."""
    most: Annotated[int | None, Field(ge=1)] = None
    """Maximum number of traces, drawn at random."""
    workers: Annotated[int, Operational(), Field(ge=1)] = 2
    seed: Seed = 0

    @model_validator(mode="after")
    def _check(self) -> RolloutLabels:
        check_model(self.policy, self.engine)
        if isinstance(self.engine, OpenAIOptions) and (why := dialects.no_beginning(self.engine)):
            raise ValueError(f"engine: roll-outs continue prefixes, but {why}")
        return self


class GroupLabels(Settings):
    """Samples of one problem that begin alike: a grpo stage's groups, or judged traces."""

    groups: Annotated[str, Input(accepts=("verdicts", "student"))]
    kind: Literal["hard", "soft"] = "soft"
    shared: Annotated[int, Field(ge=1)] = 2
    """Minimum number of samples that must share a step for it to be labelled."""


class FileLabels(Settings):
    """A JSON Lines file in PRM800K's form, or one of prompts, completions and labels."""

    file: Annotated[str, File()]
    thinking: bool = True
    """Whether the steps are the thinking (`true`) or the answer."""


SOURCES = ("exact", "slips", "rollouts", "groups", "file")


def _tag(value: Any) -> str:
    keys = value if isinstance(value, dict) else type(value).model_fields
    return next((f"{name} labels" for name in SOURCES if name in keys), "exact labels")


def _names_a_source(value: Any) -> Any:
    if isinstance(value, dict) and not set(SOURCES) & set(value):
        raise ValueError(f"names no source of labels; set one of {', '.join(SOURCES)}")
    return value


LabelSource = Annotated[
    Annotated[
        Annotated[ExactLabels, Tag("exact labels")]
        | Annotated[SlipLabels, Tag("slips labels")]
        | Annotated[RolloutLabels, Tag("rollouts labels")]
        | Annotated[GroupLabels, Tag("groups labels")]
        | Annotated[FileLabels, Tag("file labels")],
        Discriminator(_tag),
    ],
    BeforeValidator(_names_a_source),
]
