"""Settings of the grpo stage that are mappings of their own: tasks, preference by pass rate, staged lengths,
held-out problems that are watched."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill.prm import files
from distill.stages.common import VerifierSpec
from pipeline.stage import Input, Settings


class TaskSettings(Settings):
    """A share of the problems of every step."""

    stage: Annotated[str, Input(accepts=("problems",))]
    source: str | None = None
    """Only its problems of this source: a family, or what its `source` says."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of a step is this over the sum of all, exactly on average."""


class PassRateSettings(Settings):
    """Problems that are neither always nor never solved come more often."""

    aim: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The pass rate that is preferred."""
    strength: Annotated[float, Field(ge=0)] = 4.0
    """How strongly: a problem's weight is exp(-strength KL(aim, rate))."""
    known_from: Annotated[str | None, Input(accepts=("verdicts", "student"))] = None
    """What is known before the first step: verdicts of a teacher's or this student's traces, or the rollouts of
    an earlier grpo stage. By default nothing; then this run's own rollouts tell."""


class ProcessSettings(Settings):
    """A process reward model that rewards each step of a rollout, at the step's last token."""

    model: Annotated[str, Input(accepts=("prm",), prefix=files.PREFIX)]
    """`prm:STAGE`, or the directory that a `prm` stage made. It must read the student's tokens."""
    weight: Annotated[float, Field(gt=0)] = 0.5
    """Of its advantage, beside the outcome's."""
    form: Literal["minimum", "sum"] = "minimum"
    """What a rollout's steps are worth: its worst step, which length cannot buy (PURE), or the `sum` of the steps to
    come, normalised in the group (DeepSeekMath), which it can: a policy learns to write more of what scores well."""


class LengthSettings(Settings):
    until: Annotated[int, Field(ge=1)]
    """The last step (from 1) of this stage."""
    max_tokens: Annotated[int, Field(ge=1)]


OnAlarm = Literal["warn", "stop", "rollback"]


class WatchSettings(Settings):
    """Problems that are never trained on, judged by somebody whom the policy does not learn to please."""

    problems: Annotated[str, Input(accepts=("problems",))]
    """Their held-out split is asked."""
    verifier: VerifierSpec | None = None
    """Who judges; by default each problem's own."""
    every: Annotated[int, Field(ge=1)] = 20
    """Steps between two measurements; before the first step and after the last there is one too."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Of each problem."""
