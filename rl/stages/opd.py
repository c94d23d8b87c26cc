"""opd: on-policy distillation; the student samples, and a teacher scores every sampled token.

It is GRPO with weight 0 for the reward and 1 for the teacher (`rl.step_credit`): each sampled token's advantage
is the teacher's log-probability minus the student's, an estimate of minus the reverse KL per token. Verdicts are
stored and shown, but not learned from. Only settings that make sense without a reward are here; everything
else is grpo's (`rl.stages.refining`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.engines.options import TransformersOptions
from distill.modelspec import ModelName
from distill.prompting import Prompting
from distill.stages.common import RewardModel, VerifierSpec
from pipeline.stage import Context, Input, Output
from rl.stages import grpo, refining
from rl.stages.beside import ScoringEngine, TeacherSettings, check_teacher
from rl.stages.options import SampledSettings

ABOUT = "A student trained by on-policy distillation: on its own samples, scored token by token by a teacher."


class OpdSettings(SampledSettings):
    """Defaults are for a LoRA on a model of 0.5 to 8B parameters; tinker-cookbook's, less its larger batches
    (``docs/design/012-training.md``)."""

    student: ModelName
    """The model to start from. It learns slowly if it never samples what the teacher would say, so run SFT first."""
    teacher: ModelName
    """Scores tokens, and samples nothing. It must use the student's tokenizer."""
    teacher_engine: ScoringEngine = TransformersOptions()
    """What runs the teacher: `transformers`, or `vllm` (at temperature 1)."""
    problems: Annotated[str, Input(accepts=("problems",))]
    prompts: Annotated[int, Field(ge=1)] = 128
    """Problems per step."""
    group: Annotated[int, Field(ge=1)] = 4
    """Samples per problem. They are not compared, so more problems are worth more than more samples."""
    prompting: Prompting = None
    """How prompts are built for the student, and so for the teacher. What is prefilled is not trained on."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    overlong: Literal["keep", "filter"] = "keep"
    """Responses cut at `max_tokens`: train on them (their tokens are scored like any), or leave them out."""
    verifier: Annotated[VerifierSpec | None, RewardModel] = None
    """Judges the samples, for curves and alarms only. Default: each problem's own verifier."""

    @model_validator(mode="after")
    def _can_be_taught(self) -> OpdSettings:
        check_teacher(_teacher(self), self.sampling.temperature)
        return self


def _teacher(settings: OpdSettings) -> TeacherSettings:
    return TeacherSettings.model_construct(model=settings.teacher, engine=settings.teacher_engine, weight=1.0)


def _as_grpo(settings: OpdSettings) -> grpo.GrpoSettings:
    """The same settings as those of grpo; all values have been validated."""
    own = {name: getattr(settings, name) for name in OpdSettings.model_fields if not name.startswith("teacher")}
    return grpo.GrpoSettings.model_construct(**own, teacher=_teacher(settings))


def run(context: Context, settings: OpdSettings) -> Output:
    return refining.refine(context, _as_grpo(settings), outcome=0.0, about=ABOUT, card_settings=settings)


STAGE = grpo.relative("opd", "distil on-policy: a teacher scores what the student samples", OpdSettings, _as_grpo, run)
