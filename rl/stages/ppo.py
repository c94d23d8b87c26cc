"""ppo: refine a student on verifiable rewards with a value head as the baseline; what GRPO is compared with.

A stage of its own rather than a `baseline` of grpo: what grpo asks about groups (how they are compared, scaled,
refilled) has no meaning here, and what is asked here about values has none there. All that is not about credit is
grpo's (`rl.stages.refining`): the sampler, rewards, rows, alarms, checkpoints. The head is trained for the run's own
sake and not published.
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
    """Samples a problem. They are not compared, so more problems are worth more than more samples."""
    prompts: Annotated[int, Field(ge=1)] = 256
    """Problems a step."""
    passes: Annotated[int, Field(ge=1)] = 2
    """Over the rollouts of a step, each in as many `updates`; after the first, problems are shuffled."""
    clip_low: Annotated[float, Field(gt=0)] = 0.2
    """The clip of the ratio below 1 and above it."""
    clip_high: Annotated[float, Field(gt=0)] = 0.2
    kl_in_reward: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the same divergence as a price on each token in the reward, which the head learns to expect."""
    discount: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Gamma: what a reward one token later is worth."""
    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Lambda of the generalised advantage: 1 compares what came with what was expected, less trusts the head's later
    estimates more."""
    whiten: bool = True
    """Advantages of a step have mean 0 and deviation 1."""
    value_learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Of the head, one linear function that begins at zero: about how far an update moves an estimate."""
    value_weight: Annotated[float, Field(gt=0)] = 0.5
    """Of its loss beside the policy's; with `value_detached` the learning rate alone counts."""
    value_clip: Annotated[float | None, Field(gt=0)] = 0.2
    """Estimates move by so much from those before the step, or gain nothing; `null`: freely."""
    value_detached: bool = True
    """The head learns from the student's states as they are; `false` has its gradient change the student too."""

    @model_validator(mode="after")
    def _prices_a_reference(self) -> PpoSettings:
        if self.kl_in_reward and self.lora is None:
            raise ValueError("kl_in_reward needs `lora`: the reference is the student without its new adapter")
        return self


def _as_grpo(settings: PpoSettings) -> grpo.GrpoSettings:
    """The same as settings of grpo, as far as they go; all of them have been validated."""
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
    return refining.refine(context, _as_grpo(settings), about=ABOUT, told=settings, critic=_critic(settings))


STAGE = grpo.relative(
    "ppo", "refine a student on verifiable rewards, with a value head as the baseline", PpoSettings, _as_grpo, run
)
