"""ppo: refine a student on verifiable rewards with a value head as the baseline; the method to compare GRPO with.

It is a separate stage rather than a `baseline` of grpo: grpo's settings about groups (how they are compared, scaled,
refilled) mean nothing here, and the settings about values mean nothing there. Everything that is not about credit is
grpo's (`rl.stages.refining`): the sampler, rewards, rows, alarms, checkpoints. The head serves only the run and is not
published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from pipeline.stage import Context, Output
from rl.stages import grpo, refining
from rl.stages.options import RewardedSettings

if TYPE_CHECKING:
    from rl.critic import Critic

ABOUT = "A student refined by proximal policy optimisation (PPO) on verifiable rewards."


class PpoSettings(RewardedSettings):
    """The policy's defaults are grpo's, but for clips (PPO's own) and passes; the rest in `rl.critic`."""

    group: Annotated[int, Field(ge=1)] = 1
    """Samples per problem. They are not compared, so more problems are worth more than more samples."""
    prompts: Annotated[int, Field(ge=1)] = 256
    """Problems per step."""
    passes: Annotated[int, Field(ge=1)] = 2
    """Passes over the rollouts of a step, each with `updates` optimizer steps. Later passes shuffle the problems."""
    clip_low: Annotated[float, Field(gt=0)] = 0.2
    """Clips the ratio to 1 - `clip_low` and 1 + `clip_high`."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    kl_in_reward: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the same divergence as a penalty on each token's reward, which the value head learns to expect."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount factor per token (gamma)."""
    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Lambda of generalised advantage estimation. 1 compares the actual return with the estimate; lower values trust
    the value head's later estimates more."""
    whiten: bool = True
    """Normalise the advantages of a step to mean 0 and standard deviation 1."""
    value_learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of the value head, a linear function that starts at zero: about how far one update moves an
    estimate."""
    value_weight: Annotated[float, Field(gt=0)] = 0.5
    """Weight of the value loss beside the policy's. With `value_detached`, only the learning rate matters."""
    value_clip: Annotated[float | None, Field(gt=0)] = 0.2
    """How far an estimate may move from its value before the step; further moves gain nothing. `null`: no limit."""
    value_detached: bool = True
    """Keep the value head's gradient out of the student; with `false` it changes the student too."""

    @model_validator(mode="after")
    def _prices_a_reference(self) -> PpoSettings:
        if self.kl_in_reward and self.lora is None:
            raise ValueError("kl_in_reward needs `lora`: the reference is the student without its new adapter")
        return self


def _as_grpo(settings: PpoSettings) -> grpo.GrpoSettings:
    """The shared settings as those of grpo; all values have been validated."""
    shared = {name: getattr(settings, name) for name in RewardedSettings.model_fields}
    return grpo.GrpoSettings.model_construct(**shared)


def _critic(settings: PpoSettings) -> Critic:
    from rl.critic import Critic

    return Critic(
        learning_rate=settings.value_learning_rate,
        discount=settings.discount,
        decay=settings.decay,
        whiten=settings.whiten,
        kl=settings.kl_in_reward,
        weight=settings.value_weight,
        clip=settings.value_clip,
        detached=settings.value_detached,
    )


def run(context: Context, settings: PpoSettings) -> Output:
    return refining.refine(context, _as_grpo(settings), about=ABOUT, card_settings=settings, critic=_critic(settings))


STAGE = grpo.relative(
    "ppo", "refine a student on verifiable rewards, with a value head as the baseline", PpoSettings, _as_grpo, run
)
