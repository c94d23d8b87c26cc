"""Settings shared by the stages that train a student on its own samples.

`SampledSettings` are those of `grpo`, `ppo` and `opd`; `RewardedSettings` those of the first two, which learn from
rewards; `WatchedSettings` those of all three and `gkd`. Settings of a single stage are in its module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.engines.options import PolicyEngine, SamplingSettings, Thinking, VllmOptions, check_thinking
from distill.modelspec import ModelName
from distill.prm import files
from distill.prompting import Prompting
from distill.stages.common import RewardModel, VerifierSpec
from distill.stages.student import WriterSettings
from pipeline.stage import Input, Operational, Settings, later
from rl import rewards
from rl.alarms import AlarmSettings
from rl.rewards import Component, Verified


class TaskSettings(Settings):
    """A share of the problems of every step."""

    stage: Annotated[str, Input(accepts=("problems",))]
    source: str | None = None
    """Use only problems of this source: a family, or the `source` given there."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Relative weight: its share of each step is this over the sum of all, exactly on average."""


class PassRateSettings(Settings):
    """Problems that are neither always nor never solved come more often."""

    aim: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Preferred pass rate."""
    strength: Annotated[float, Field(ge=0)] = 4.0
    """Strength of the preference: a problem's weight is exp(-strength KL(aim, rate))."""
    known_from: Annotated[str | None, Input(accepts=("verdicts", "student"))] = None
    """Pass rates known before the first step: verdicts on a teacher's or this student's traces, or the rollouts of an
    earlier grpo stage. Default: none, only this run's own rollouts."""


class ProcessSettings(Settings):
    """A process reward model that rewards each step of a rollout, at the step's last token."""

    model: Annotated[str, Input(accepts=("prm",), prefix=files.PREFIX)]
    """`prm:STAGE`, or the directory of a `prm` stage's result. It must use the student's tokenizer."""
    dtype: Literal["float32", "bfloat16"] = later("float32")
    """`bfloat16` takes half the memory and is meant for GPUs, whose bfloat16 products are faster."""
    weight: Annotated[float, Field(gt=0)] = 0.5
    """Weight of its advantage, beside the outcome's."""
    form: Literal["minimum", "sum"] = "minimum"
    """What a rollout's steps are worth: its worst step (`minimum`, PURE), which length cannot increase, or the `sum` of
    the steps to come, normalised in the group (DeepSeekMath), which it can: the policy learns to write more of what
    scores well."""


class LengthSettings(Settings):
    until: Annotated[int, Field(ge=1)]
    """Last step (from 1) of this stage."""
    max_tokens: Annotated[int, Field(ge=1)]


OnAlarm = Literal["warn", "stop", "rollback"]


class WatchSettings(Settings):
    """Problems that are never trained on, judged by somebody whom the policy does not learn to please."""

    problems: Annotated[str, Input(accepts=("problems",))]
    """Its held-out problems are measured."""
    verifier: Annotated[VerifierSpec | None, RewardModel] = None
    """Judges the answers. Default: each problem's own verifier."""
    every: Annotated[int, Field(ge=1)] = 20
    """Steps between measurements. It is also measured before the first step and after the last."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Samples per problem."""


class WatchedSettings(Settings):
    """How a run that learns from its own samples is watched (`rl.guard`)."""

    watch: WatchSettings | None = later()
    """Measure held-out problems during training, by a verifier that gives no reward."""
    alarms: AlarmSettings = later(AlarmSettings())
    """When to warn that the reward is being hacked or the policy is collapsing."""
    on_alarm: Annotated[OnAlarm, Field(exclude_if=lambda value: value != "rollback")] = "warn"
    """`warn` reports it and continues. `stop` ends the run after a checkpoint; with `warn` it can continue from there.
    `rollback` (needs `watch`) ends with the student that had the best held-out pass@1."""

    @model_validator(mode="after")
    def _knows_what_is_good(self) -> WatchedSettings:
        if self.on_alarm == "rollback" and self.watch is None:
            raise ValueError("on_alarm: rollback needs `watch`: held-out problems say which checkpoint is good")
        return self

    def unwatchable(self, figures: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Why there is nothing to watch, judging by the figures of upstream stages; None if there is."""
        if self.watch is None or self.watch.problems not in figures or figures[self.watch.problems].get("heldout"):
            return None
        return f"watch: {self.watch.problems} holds out no problem"


class SampledSettings(WatchedSettings, WriterSettings):
    student: ModelName
    """The model to refine. Without its new adapter it is the reference of the KL term."""
    steps: Annotated[int, Field(ge=1)] = 100
    prompts: Annotated[int, Field(ge=1)] = 32
    """Problems per step."""
    group: Annotated[int, Field(ge=1)] = 8
    """Samples per problem."""
    sampling: SamplingSettings = SamplingSettings()
    prompting: Prompting = None
    """How prompts are built for the student. What is prefilled is not trained on."""
    thinking: Thinking = None
    learning_rate: Annotated[float, Field(gt=0)] = 4e-5
    norm_learning_rate: Annotated[float | None, Field(gt=0)] = None  # in fingerprints here, left at it too
    """Also train the final norm's weight, at this learning rate. It is the quickest way to sharpen the distribution."""
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of steps spent warming up."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Final learning rate, as a share of its peak."""
    updates: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps per step, each on its share of the rollouts. With 1, training is strictly on-policy."""
    engine_correction: Literal["truncate", "mask", "none"] = "truncate"
    """Importance weights that correct for differences between the engine's and the trainer's log-probabilities."""
    engine_cap: Annotated[float, Field(gt=0)] = 2.0
    """Upper bound of these weights: larger ones are lowered to it (`truncate`) or set to 0 (`mask`)."""
    engine_floor: Annotated[float, Field(ge=0)] = later(0.0)
    """Lower bound of these weights, applied likewise (IcePop: `mask` between 0.5 and 5)."""
    engine_level: Literal["token", "sequence"] = later("token")
    """A weight per token, or their product for the whole response. Over a long response the product vanishes: a gap of
    0.012 nats leaves a median of 0.03 after 32,000 tokens."""
    verifier: Annotated[VerifierSpec | None, RewardModel] = None
    """Judges the samples. Default: each problem's own verifier."""
    workers: Annotated[int, Operational(), Field(ge=0)] = 0
    """Sampling processes. 0 means one per core for a small model on a CPU, otherwise one."""
    engine: PolicyEngine = "transformers"
    """What samples: `transformers`, or `vllm`, which loads the adapter at each step (needs `lora`)."""

    @model_validator(mode="after")
    def _can_be_sampled(self) -> SampledSettings:
        check_thinking(self.thinking, self.sampling)
        if self.sampling.temperature <= 0 or self.sampling.top_p < 1 or self.sampling.top_k:
            raise ValueError(
                "sampling: what is learned from needs temperature > 0, top_p 1 and top_k 0 (no truncation)"
            )
        if self.engine_floor >= self.engine_cap:
            raise ValueError("engine_floor must be below engine_cap")
        for name in ("engine_level", "engine_floor", "engine_cap"):
            if self.engine_correction == "none" and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} does nothing with `engine_correction: none`; leave one of the two out")
        if self.updates > self.prompts:
            raise ValueError(f"updates: each learns from problems of its own, and a step has {self.prompts} (prompts)")
        if isinstance(self.engine, VllmOptions):
            if self.lora is None:
                raise ValueError("engine vllm needs `lora`: it takes up an adapter at each step, not a model")
            if self.norm_learning_rate is not None:
                raise ValueError("engine vllm applies LoRA alone; leave norm_learning_rate out, or use transformers")
            if self.quantize:
                raise ValueError("engine vllm samples from the base as it is, not in 4 bits; leave quantize out")
            if self.engine.speculative:
                raise ValueError("engine vllm: seeds do not repeat with `speculative`; a killed step would not either")
        return self


class RewardedSettings(SampledSettings):
    problems: Annotated[str | Annotated[list[TaskSettings], Field(min_length=1)], Input(accepts=("problems",))]
    """One stage, or a list of stages, or of sources in them, with weights."""
    pass_rate: PassRateSettings | None = later()
    """Prefer problems by their pass rate. Default: go through all of them."""
    lengths: list[LengthSettings] | None = later()
    """Stages with a lower `max_tokens`, each up to a step. After the last one, `sampling.max_tokens` applies."""
    reward: Annotated[list[Component], Field(min_length=1)] | None = later()
    """Instead of `verifier`: a weighted sum of named components."""
    overlong: Literal["keep", "filter", "punish"] = "keep"
    """Responses cut at `max_tokens`: train on them, leave them out of the loss (`filter`), or lower their reward
    gradually (`punish`)."""
    overlong_buffer: Annotated[int, Field(ge=0)] = 0
    """For `punish`: over this many tokens before the limit, the reward falls by up to 1."""
    passes: Annotated[int, Field(ge=1)] = later(1)
    """Passes over the rollouts of a step, each with `updates` optimizer steps. Later passes shuffle the problems."""
    clip_low: Annotated[float | None, Field(gt=0)] = None
    """Clips the ratio to 1 - `clip_low` and 1 + `clip_high`. Default: the loss's own (dapo: 0.2 and 0.28)."""
    clip_high: Annotated[float | None, Field(gt=0)] = None
    clip_cap: Annotated[float | None, Field(gt=1)] = None
    """Also bounds the ratio of tokens with a negative advantage (two-sided clipping). Must be above 1 + `clip_high`."""
    kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL divergence from the student without its new adapter."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """`k3` has low variance and is never negative; `k2` has the divergence's gradient; `k1` has none on average, unless
    `kl_corrected`."""
    kl_corrected: bool = False
    """Multiply the KL term by the ratio, which makes the gradient of `k1` and `k3` unbiased."""

    @model_validator(mode="after")
    def _is_rewarded(self) -> RewardedSettings:
        if self.reward is not None:
            if self.verifier is not None:
                raise ValueError("give `verifier` or `reward`; a component of `reward` names its verifier")
            rewards.check(self.reward)
        return self

    @model_validator(mode="after")
    def _has_a_reference(self) -> RewardedSettings:
        if self.kl and self.lora is None:
            raise ValueError("kl needs `lora`: the reference is the student without its new adapter")
        if self.kl and self.kl_estimator == "k1" and not self.kl_corrected:
            raise ValueError("kl_estimator: the gradient of k1 is 0 on average; set kl_corrected, or take k2 or k3")
        if self.kl and self.kl_estimator == "k2" and self.kl_corrected:
            raise ValueError("kl_corrected: k2 has the divergence's gradient as it is; leave it out, or take k1 or k3")
        return self

    @model_validator(mode="after")
    def _caps(self) -> RewardedSettings:
        if self.clip_cap is not None and self.clip_high is not None and self.clip_cap <= 1 + self.clip_high:
            raise ValueError("clip_cap must be above 1 + clip_high: below it, it bounds nothing but the good tokens")
        return self

    @model_validator(mode="after")
    def _punishes(self) -> RewardedSettings:
        shortest = min([self.sampling.max_tokens, *(stage.max_tokens for stage in self.lengths or ())])
        if self.overlong == "punish" and not 0 < self.overlong_buffer < shortest:
            raise ValueError(f"overlong: punish needs an overlong_buffer between 0 and max_tokens ({shortest})")
        if self.overlong != "punish" and self.overlong_buffer:
            raise ValueError("overlong_buffer lowers rewards with `overlong: punish` alone; set that, or leave it out")
        return self

    @model_validator(mode="after")
    def _grows(self) -> RewardedSettings:
        untils = [stage.until for stage in self.lengths or ()]
        if untils != sorted(set(untils)):
            raise ValueError("lengths: each stage ends at a later step than the one before it")
        if untils and untils[-1] > self.steps:
            raise ValueError(
                f"lengths: a stage ends at step {untils[-1]}, but there are {self.steps} (steps); raise `steps`, or"
                " lower `until` (`lengths=null` takes them out of a short trial)"
            )
        if any(stage.max_tokens > self.sampling.max_tokens for stage in self.lengths or ()):
            raise ValueError("lengths: no stage is longer than sampling.max_tokens, which holds after the last of them")
        for stage in self.lengths or ():
            check_thinking(self.thinking, self.sampling.model_copy(update={"max_tokens": stage.max_tokens}))
        return self

    @property
    def tasks(self) -> list[TaskSettings]:
        return [TaskSettings(stage=self.problems)] if isinstance(self.problems, str) else self.problems

    @property
    def components(self) -> tuple[Component, ...]:
        return tuple(self.reward or [Verified(verifier=self.verifier, values=[0.0, 1.0])])
