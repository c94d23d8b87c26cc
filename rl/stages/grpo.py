"""grpo: refine a student on verifiable rewards; every rollout is a row before the update it feeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import modelspec, verification
from distill.engines.options import PolicyEngine, SamplingSettings, Thinking, VllmOptions, check_thinking
from distill.modelspec import Model, ModelName
from distill.prompting import Prompting
from distill.spending import Spending
from distill.stages.common import RewardModel, VerifierSpec, ask_of, resolved, store_of
from distill.stages.devices import check_memory, foreseen
from distill.stages.student import StudentSettings, load_student, publish
from distill.types import Problem
from distill.verifiers import VerifierPool
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Operational, Output, Settings, Stage, later
from rl import rewards
from rl.alarms import AlarmSettings
from rl.rewards import Component, Verified
from rl.stages import drawing
from rl.stages.options import (
    LengthSettings,
    OnAlarm,
    PassRateSettings,
    ProcessSettings,
    TaskSettings,
    WatchSettings,
)
from rl.stages.process import process_dependency, process_rewards
from rl.stages.teacher import TeacherSettings, check_teacher, scoring

if TYPE_CHECKING:
    from distill.engines.transformers import TransformersEngine
    from rl.grpo import GrpoSettings as LoopSettings
    from rl.loss import PolicyLoss
    from rl.monitors import GrpoMetrics
    from rl.step_credit import Mix
    from rl.vllm_policy import VllmPolicy

ABOUT = "A student refined by group-relative policy optimisation (GRPO) on verifiable rewards."


class GrpoSettings(StudentSettings):
    """Defaults are for a LoRA on a model of 0.5 to 8B parameters; sources in ``docs/design``."""

    student: ModelName
    """The model to refine; without its new adapter it is the reference of the KL term."""
    problems: Annotated[str | Annotated[list[TaskSettings], Field(min_length=1)], Input(accepts=("problems",))]
    """The stage that makes problems, or several of them, or parts of them, with weights."""
    pass_rate: PassRateSettings | None = later()
    """Prefer problems by how often they are solved; by default all are walked through."""
    steps: Annotated[int, Field(ge=1)] = 100
    prompts: Annotated[int, Field(ge=1)] = 32
    """Problems a step."""
    group: Annotated[int, Field(ge=2)] = 8
    """Samples a problem."""
    sampling: SamplingSettings = SamplingSettings()
    lengths: list[LengthSettings] | None = later()
    """Stages of a shorter `max_tokens`, each up to a step; after the last that of `sampling` holds."""
    prompting: Prompting = None
    """How each problem is put to the student; what is prefilled is seen and not learned."""
    thinking: Thinking = None
    learning_rate: Annotated[float, Field(gt=0)] = 4e-5
    norm_learning_rate: Annotated[float | None, Field(gt=0)] = None
    """Trains the final norm's weight beside the adapter, at this rate: the quickest way to sharpen."""
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What the learning rate falls to, as a share of its peak."""
    baseline: Literal["group", "leave_one_out"] = "group"
    """A reward is compared with the mean of its group, or of the others of its group (RLOO)."""
    scale: Literal["group", "batch", "none"] = "group"
    """Advantages are divided by the standard deviation of the group, of the step, or not at all."""
    loss: Literal["grpo", "dapo", "dr_grpo", "bnpo", "gspo", "cispo"] = "dapo"
    clip_low: Annotated[float | None, Field(gt=0)] = None
    """The clip of the ratio below 1 and above it; by default that of the loss (dapo: 0.2 and 0.28)."""
    clip_high: Annotated[float | None, Field(gt=0)] = None
    clip_cap: Annotated[float | None, Field(gt=1)] = None
    """Bounds the ratio of tokens with a negative advantage too (two-sided clipping)."""
    updates: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps on the rollouts of a step; with 1 it is strictly on-policy and no clip ever acts."""
    refills: Annotated[int, Field(ge=0)] = 0
    """So many times new problems are drawn for groups without a gradient (DAPO's dynamic sampling)."""
    overlong: Literal["keep", "filter", "punish"] = "keep"
    """Responses cut at `max_tokens`: learned from, left out of the loss, or their reward lowered softly."""
    overlong_buffer: Annotated[int, Field(ge=0)] = 0
    """`punish`: over so many tokens before the limit the reward falls by up to 1."""
    kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL divergence from the student without its new adapter."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_corrected: bool = False
    """Multiply the KL term by the ratio, which makes its gradient unbiased."""
    engine_correction: Literal["truncate", "mask", "none"] = "truncate"
    """Weights for the difference between the engine's and the trainer's log-probabilities, per token."""
    engine_cap: Annotated[float, Field(gt=0)] = 2.0
    """The largest such weight."""
    verifier: Annotated[VerifierSpec | None, RewardModel] = None
    """The reward; by default each problem's own verifier."""
    teacher: TeacherSettings | None = later()
    """Adds a teacher's log-ratio to the advantage of every token (a reverse KL term); every group then teaches."""
    process: ProcessSettings | None = later()
    """A process reward model that rewards each step of a rollout beside the outcome (dense rewards)."""
    reward: Annotated[list[Component], Field(min_length=1)] | None = later()
    """The reward as a weighted sum of named components, in place of `verifier`."""
    watch: WatchSettings | None = later()
    """Held-out problems that are measured while training goes on, by a verifier that gives no reward."""
    alarms: AlarmSettings = later(AlarmSettings())
    """When to say that the reward is being hacked, or that the policy is falling apart."""
    on_alarm: Annotated[OnAlarm, Field(exclude_if=lambda value: value != "rollback")] = "warn"
    """`warn` says so and goes on; `stop` ends the run after a checkpoint, from which `warn` goes on; `rollback` (it
    needs `watch`) ends with the student whose held-out pass@1 was best."""
    workers: Annotated[int, Operational(), Field(ge=0)] = 0
    """Processes to sample with; 0 means one a core for a small model on a CPU, else one."""
    engine: PolicyEngine = "transformers"
    """What samples: `transformers`, or `vllm`, which takes up the adapter at each step (it needs `lora`)."""

    @model_validator(mode="after")
    def _can_answer(self) -> GrpoSettings:
        check_thinking(self.thinking, self.sampling)
        return self

    @model_validator(mode="after")
    def _is_rewarded(self) -> GrpoSettings:
        if self.reward is not None:
            if self.verifier is not None:
                raise ValueError("give `verifier` or `reward`; a component of `reward` names its verifier")
            rewards.check(self.reward)
        return self

    @model_validator(mode="after")
    def _knows_what_is_good(self) -> GrpoSettings:
        if self.on_alarm == "rollback" and self.watch is None:
            raise ValueError("on_alarm: rollback needs `watch`: held-out problems say which checkpoint is good")
        return self

    @model_validator(mode="after")
    def _grows(self) -> GrpoSettings:
        untils = [stage.until for stage in self.lengths or ()]
        if untils != sorted(set(untils)):
            raise ValueError("lengths: each stage ends at a later step than the one before it")
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

    @model_validator(mode="after")
    def _can_be_run(self) -> GrpoSettings:
        check_engines(self)
        if self.teacher and self.refills:
            raise ValueError("refills and teacher exclude each other: with a teacher no group is without a gradient")
        if self.process and self.refills:
            raise ValueError("refills and process exclude each other: steps differ where outcomes do not")
        return self


def check_engines(settings: GrpoSettings) -> None:
    """ValueError for what the engines of student and teacher cannot do."""
    if isinstance(settings.engine, VllmOptions):
        if settings.lora is None:
            raise ValueError("engine vllm needs `lora`: it takes up an adapter at each step, not a model")
        if settings.norm_learning_rate is not None:
            raise ValueError("engine vllm applies LoRA alone; leave norm_learning_rate out, or use transformers")
        if settings.quantize:
            raise ValueError("engine vllm samples from the base as it is, not in 4 bits; leave quantize out")
        if settings.engine.speculative:
            raise ValueError("engine vllm: seeds do not repeat with `speculative`; a killed step would not either")
    if settings.teacher:
        check_teacher(settings.teacher, settings.sampling.temperature)


def run(context: Context, settings: GrpoSettings) -> Output:
    return refine(context, settings, outcome=1.0, about=ABOUT, told=settings)


def refine(context: Context, settings: GrpoSettings, *, outcome: float, about: str, told: Settings) -> Output:
    """Train, and publish the student with a card that says ``about`` and the settings ``told``. ``outcome`` is
    the weight of the reward beside that of a teacher."""
    from distill.training.metrics import Recorder
    from rl.draws import zero_variance
    from rl.grpo import train_grpo
    from rl.ledger import Ledger
    from rl.stages import guarding

    store = store_of(context)
    store.ingest()
    start = modelspec.find(settings.student, context.workspace, context.inputs, context.hashes)
    tasks, problem_keys = drawing.tasks(context, settings)
    check_memory(context, settings, start, samples=True)
    network, tokenizer = load_student(settings, start, final_norm=settings.norm_learning_rate is not None, samples=True)
    how, ask = _how(settings), ask_of(context, settings.prompting, settings.thinking, settings.tasks[0].stage)
    with (
        closing(_policy(context, settings, start, network, tokenizer, tasks[0].problems[0])) as policy,
        VerifierPool(1, note=context.note, hashes=context.hashes, spending=Spending(store, context.name)) as pool,
        Recorder(store, context, _shown(settings), settings.log_to) as recorder,
        _mix(context, settings, outcome, tokenizer) as mix,
    ):
        verifiers = resolved(context, rewards.verifiers(settings.components))
        ledger = Ledger(store, context.fingerprint, how, problem_keys, pool, verifiers, context.stopping, ask)
        draws = drawing.draws(context, settings, tasks, ledger, problem_keys)
        guard = guarding.guard(context, settings, policy, how.sampling, ask)

        def hear(metrics: GrpoMetrics) -> None:
            recorder(metrics)
            guard.hear(metrics)

        train_grpo(
            network,
            policy,
            how,
            sample=draws,
            reward=ledger.reward,
            mix=mix,
            ask=ask,
            checkpoints=context.work / "checkpoints",
            stop=context.stopping,
            recall=ledger.recall,
            on_rollouts=partial(drawing.written, settings, ledger, draws),
            on_updates=ledger.learned,
            on_step=hear,
            before_save=recorder.flush,
            over=guard.over,
        )
    digest = publish(context, network, tokenizer, about, settings.student, told, guard.told())
    figures = {"steps": settings.steps, "rollouts": ledger.count()} | recorder.last() | guard.figures()
    return Output(digest, figures | (zero_variance(draws, settings.steps) if settings.pass_rate else {}))


@contextmanager
def _mix(context: Context, settings: GrpoSettings, outcome: float, tokenizer: Any) -> Iterator[Mix]:
    """What a rollout gets credit for: its reward, its steps, and what a teacher says of its tokens."""
    from rl.step_credit import Mixture, outcome_alone

    if settings.teacher is None and settings.process is None:
        yield outcome_alone
        return
    mixture = Mixture(outcome, leave_out_cut=settings.overlong == "filter")
    if settings.process:
        steps, weight, form = (
            process_rewards(context, settings.process, tokenizer),
            settings.process.weight,
            settings.process.form,
        )
        mixture = replace(mixture, steps=steps, step_weight=weight, step_form=form)
    with ExitStack() as stack:
        if settings.teacher:
            temperature, tokens = settings.sampling.temperature, settings.micro_batch_tokens
            score = stack.enter_context(scoring(context, settings.teacher, tokenizer, temperature, tokens))
            mixture = replace(mixture, teacher=score, teacher_weight=settings.teacher.weight)
        yield mixture


def _shown(settings: GrpoSettings) -> tuple[str, ...]:
    """The figures on the display."""
    own = "teacher_kl" if settings.teacher else "zero_variance"
    return ("reward", own, "entropy", "length", "grad_norm")


def _policy(
    context: Context, settings: GrpoSettings, start: Model, network: Any, tokenizer: Any, probe: Problem
) -> TransformersEngine | VllmPolicy:
    from distill.engines.transformers import TransformersEngine, workers_for
    from rl.vllm_policy import open_policy

    if isinstance(settings.engine, VllmOptions):
        return open_policy(network, tokenizer, start, settings.engine, context.work / "policy", probe, context.note)
    workers = workers_for(network, settings.workers)
    return TransformersEngine(network, tokenizer, model_identity=context.fingerprint, workers=workers)


def _how(settings: GrpoSettings) -> LoopSettings:
    from distill.training.optimizer import OptimizerSettings
    from distill.training.student import threads
    from rl.grpo import GrpoSettings as LoopSettings
    from rl.loss import RECIPES

    return LoopSettings(
        optimizer=OptimizerSettings(
            settings.learning_rate,
            norm_learning_rate=settings.norm_learning_rate,
            schedule=settings.schedule,
            warmup=settings.warmup,
            final=settings.final,
        ),
        steps=settings.steps,
        group=settings.group,
        sampling=settings.sampling.sampling(settings.seed),
        baseline=settings.baseline,
        scale=settings.scale,
        loss=_loss(settings),
        aggregation=RECIPES[settings.loss].aggregation,
        updates=settings.updates,
        refills=settings.refills,
        overlong=settings.overlong,
        overlong_buffer=settings.overlong_buffer,
        reward=settings.components,
        lengths=tuple((stage.until, stage.max_tokens) for stage in settings.lengths or ()),
        precision=settings.precision,
        micro_batch_tokens=settings.micro_batch_tokens,
        threads=threads(settings.threads),
        devices=settings.devices,
        parallel=settings.parallel,
        checkpoint_seconds=10.0,
    )


def _loss(settings: GrpoSettings) -> PolicyLoss:
    from rl.loss import RECIPES, EngineCorrection, PolicyLoss

    recipe = RECIPES[settings.loss]
    return PolicyLoss(
        objective=recipe.objective,
        level=recipe.level,
        clip_low=recipe.clip_low if settings.clip_low is None else settings.clip_low,
        clip_high=recipe.clip_high if settings.clip_high is None else settings.clip_high,
        clip_cap=settings.clip_cap,
        correction=EngineCorrection(settings.engine_correction, high=settings.engine_cap),
        kl=settings.kl,
        estimator=settings.kl_estimator,
        kl_corrected=settings.kl_corrected,
    )


def _rollouts(settings: GrpoSettings) -> int:
    """At most so many."""
    return settings.steps * settings.prompts * settings.group * (1 + settings.refills)


def refuse(settings: GrpoSettings, figures: Mapping[str, Mapping[str, Any]]) -> str | None:
    whole = sum(task.weight for task in settings.tasks)
    for task in settings.tasks:
        wanted = ceil(settings.prompts * task.weight / whole) * (1 + settings.refills)
        there = figures[task.stage].get("train", 0) if task.stage in figures else wanted
        if there < wanted:
            return (
                f"{wanted} prompts a step, but only {there} problems to train on in {task.stage}; "
                "lower `prompts` or `refills`"
            )
    return None


def forecast(context: Context, settings: GrpoSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    each, begun, tokens = _rollouts(settings) // settings.steps, 0, 0
    for until, longest in [(s.until, s.max_tokens) for s in settings.lengths or ()] + [
        (settings.steps, settings.sampling.max_tokens)
    ]:
        steps = max(0, min(until, settings.steps) - begun)
        tokens, begun = tokens + steps * each * longest, begun + steps
    figures = {"calls": _rollouts(settings), "max_tokens": tokens, **foreseen(settings, samples=True)}
    return Forecast("steps", settings.steps, 0, figures)


def dependencies(settings: GrpoSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    named = rewards.verifiers(settings.components).values()
    every = [
        verification.versions(spec, upstream[task.stage], hashes)
        for spec in named
        for task in (settings.tasks if spec is None else settings.tasks[:1])
    ]
    versions = {name: version for found in every for name, version in found.items()}
    teacher = modelspec.dependency(settings.teacher.model, hashes) if settings.teacher else {}
    process = process_dependency(settings.process, hashes)
    return {**modelspec.dependency(settings.student, hashes), **teacher, **process, "verifiers": content_hash(versions)}


STAGE = Stage(
    kind="grpo",
    about="refine a student on verifiable rewards",
    settings=GrpoSettings,
    produces="student",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
    refuse=refuse,
)
