"""opd: on-policy distillation; the student samples, and a teacher scores every token it sampled.

GRPO in which the reward's weight is 0 and the teacher's 1 (`rl.step_credit`): each sampled token's advantage
is the teacher's log-probability less the student's, which is the reverse KL per token. Verdicts are kept and
shown, and not learned from. Only the settings that mean something without a reward are here; everything
else is `rl.stages.grpo`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.engines.options import PolicyEngine, SamplingSettings, Thinking, TransformersOptions, check_thinking
from distill.modelspec import ModelName
from distill.prompting import Prompting
from distill.stages.common import VerifierSpec
from distill.stages.student import StudentSettings
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Operational, Output, Stage
from rl.stages import grpo
from rl.stages.teacher import ScoringEngine, TeacherSettings

ABOUT = "A student trained by on-policy distillation: on its own samples, scored token by token by a teacher."


class OpdSettings(StudentSettings):
    """Defaults are for a LoRA on a model of 0.5 to 8B parameters; tinker-cookbook's, less its larger batches."""

    student: ModelName
    """The model to start from. One that never samples what the teacher would say learns slowly: SFT comes first."""
    teacher: ModelName
    """It scores, and samples nothing; its tokenizer must be the student's."""
    teacher_engine: ScoringEngine = TransformersOptions()
    """What runs the teacher: `transformers`, or `vllm` (at temperature 1)."""
    problems: Annotated[str, Input(accepts=("problems",))]
    steps: Annotated[int, Field(ge=1)] = 100
    prompts: Annotated[int, Field(ge=1)] = 128
    """Problems a step."""
    group: Annotated[int, Field(ge=1)] = 4
    """Samples a problem. They are not compared, so more problems are worth more than more samples."""
    sampling: SamplingSettings = SamplingSettings()
    prompting: Prompting = None
    """How each problem is put to the student, and so to the teacher; what is prefilled is seen and not learned."""
    thinking: Thinking = None
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    norm_learning_rate: Annotated[float | None, Field(gt=0)] = None
    """Trains the final norm's weight beside the adapter, at this rate."""
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What the learning rate falls to, as a share of its peak."""
    updates: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps on the rollouts of a step; with 1 it is strictly on-policy."""
    overlong: Literal["keep", "filter"] = "keep"
    """Responses cut at `max_tokens`: learned from (their tokens are scored like any), or left out."""
    engine_correction: Literal["truncate", "mask", "none"] = "truncate"
    """Weights for the difference between the engine's and the trainer's log-probabilities, per token."""
    engine_cap: Annotated[float, Field(gt=0)] = 2.0
    """The largest such weight."""
    verifier: VerifierSpec | None = None
    """Who judges what is sampled, for the curves alone; by default each problem's own verifier."""
    workers: Annotated[int, Operational(), Field(ge=0)] = 0
    """Processes to sample with; 0 means one a core for a small model on a CPU, else one."""
    engine: PolicyEngine = "transformers"
    """What samples: `transformers`, or `vllm`, which takes up the adapter at each step (it needs `lora`)."""

    @model_validator(mode="after")
    def _can_be(self) -> OpdSettings:
        grpo.check_engines(_as_grpo(self))
        check_thinking(self.thinking, self.sampling)
        return self


def _as_grpo(settings: OpdSettings) -> grpo.GrpoSettings:
    """The same as settings of grpo; all of them have been validated."""
    own = {name: getattr(settings, name) for name in OpdSettings.model_fields if not name.startswith("teacher")}
    teacher = TeacherSettings.model_construct(model=settings.teacher, engine=settings.teacher_engine, weight=1.0)
    return grpo.GrpoSettings.model_construct(**own, teacher=teacher)


def run(context: Context, settings: OpdSettings) -> Output:
    return grpo.refine(context, _as_grpo(settings), outcome=0.0, about=ABOUT, told=settings)


def refuse(settings: OpdSettings, figures: Mapping[str, Mapping[str, Any]]) -> str | None:
    return grpo.refuse(_as_grpo(settings), figures)


def forecast(context: Context, settings: OpdSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    return grpo.forecast(context, _as_grpo(settings), expected)


def dependencies(settings: OpdSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    return grpo.dependencies(_as_grpo(settings), hashes, upstream)


STAGE = Stage(
    kind="opd",
    about="distil on-policy: a teacher scores what the student samples",
    settings=OpdSettings,
    produces="student",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
    refuse=refuse,
)
