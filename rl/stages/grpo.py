"""grpo: refine a student on verifiable rewards; every rollout is a row before the update it feeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from distill import modelspec, verification
from distill.engines.options import PolicyEngine, SamplingSettings, Thinking, VllmOptions, check_thinking
from distill.modelspec import Model, ModelName
from distill.prompting import Prompting
from distill.randomness import permutation
from distill.spending import Spending
from distill.stages.common import VerifierSpec, ask_of, store_of
from distill.stages.student import StudentSettings, load_student, publish
from distill.store.records import problems
from distill.types import Problem
from distill.verifiers import VerifierPool
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes, content_hash
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Operational, Output, Settings, Stage, later
from rl.stages.teacher import TeacherSettings, check_teacher, scoring

if TYPE_CHECKING:
    from distill.engines.transformers import TransformersEngine
    from rl.grpo import GrpoSettings as LoopSettings
    from rl.loss import PolicyLoss
    from rl.step_credit import Mix
    from rl.vllm_policy import VllmPolicy

ABOUT = "A student refined by group-relative policy optimisation (GRPO) on verifiable rewards."


class GrpoSettings(StudentSettings):
    """Defaults are for a LoRA on a model of 0.5 to 8B parameters; sources in ``docs/design``."""

    student: ModelName
    """The model to refine; without its new adapter it is the reference of the KL term."""
    problems: Annotated[str, Input(accepts=("problems",))]
    steps: Annotated[int, Field(ge=1)] = 100
    prompts: Annotated[int, Field(ge=1)] = 32
    """Problems a step."""
    group: Annotated[int, Field(ge=2)] = 8
    """Samples a problem."""
    sampling: SamplingSettings = SamplingSettings()
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
    verifier: VerifierSpec | None = None
    """The reward; by default each problem's own verifier."""
    teacher: TeacherSettings | None = later()
    """Adds a teacher's log-ratio to the advantage of every token (a reverse KL term); every group then teaches."""
    workers: Annotated[int, Operational(), Field(ge=0)] = 0
    """Processes to sample with; 0 means one a core for a small model on a CPU, else one."""
    engine: PolicyEngine = "transformers"
    """What samples: `transformers`, or `vllm`, which takes up the adapter at each step (it needs `lora`)."""

    @model_validator(mode="after")
    def _can_answer(self) -> GrpoSettings:
        check_thinking(self.thinking, self.sampling)
        return self

    @model_validator(mode="after")
    def _can_be_run(self) -> GrpoSettings:
        check_engines(self)
        if self.teacher and self.refills:
            raise ValueError("refills and teacher exclude each other: with a teacher no group is without a gradient")
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
    from rl.grpo import train_grpo
    from rl.ledger import Ledger

    store = store_of(context)
    store.ingest()
    start = modelspec.find(settings.student, context.workspace, context.inputs, context.hashes)
    tasks = problems(store, context.inputs[settings.problems].digest, "train")
    problem_keys = {problem.id: key for key, problem in tasks}
    if len(problem_keys) < len(tasks):
        raise InputError(
            f"stage {context.name}: two problems of {settings.problems} go by one name; give each of its sources a "
            "`source` of its own"
        )
    network, tokenizer = load_student(settings, start, final_norm=settings.norm_learning_rate is not None)
    how, ask = _how(settings), ask_of(context, settings.prompting, settings.thinking, settings.problems)
    with (
        closing(_policy(context, settings, start, network, tokenizer, tasks[0][1])) as policy,
        VerifierPool(1, note=context.note, hashes=context.hashes, spending=Spending(store, context.name)) as pool,
        Recorder(store, context, _shown(settings)) as recorder,
        _mix(context, settings, outcome, tokenizer) as mix,
    ):
        ledger = Ledger(store, context.fingerprint, how, problem_keys, pool, settings.verifier, context.stopping, ask)
        train_grpo(
            network,
            policy,
            how,
            sample=partial(_sample, tasks, settings),
            reward=ledger.reward,
            mix=mix,
            ask=ask,
            checkpoints=context.work / "checkpoints",
            stop=context.stopping,
            recall=ledger.recall,
            on_rollouts=ledger.write,
            on_step=recorder,
            before_save=recorder.flush,
        )
    digest = publish(context, network, tokenizer, about, settings.student, told)
    return Output(digest, {"steps": settings.steps, "rollouts": ledger.count()} | recorder.last())


@contextmanager
def _mix(context: Context, settings: GrpoSettings, outcome: float, tokenizer: Any) -> Iterator[Mix]:
    """What a rollout gets credit for: its reward, and what a teacher says of its tokens."""
    from rl.step_credit import Mixture, outcome_alone

    if settings.teacher is None:
        yield outcome_alone
        return
    temperature, weight = settings.sampling.temperature, settings.teacher.weight
    with scoring(context, settings.teacher, tokenizer, temperature, settings.micro_batch_tokens) as score:
        yield Mixture(outcome, score, weight, leave_out_cut=settings.overlong == "filter")


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


def _sample(tasks: Sequence[tuple[str, Problem]], settings: GrpoSettings, step: int, draw: int = 0) -> list[Problem]:
    """The problems of a draw: a walk through permutations of them all, a new one for each round. Every step
    has room for all its draws on the walk, whether they are made or not, so that a draw depends on no other."""
    first = step * (1 + settings.refills) * settings.prompts
    chosen: dict[str, tuple[int, Problem]] = {}
    for offset in range((draw + 1) * settings.prompts):
        problem = _at(tasks, settings, first + offset)
        chosen.setdefault(problem.id, (offset, problem))
    return [problem for offset, problem in chosen.values() if offset >= draw * settings.prompts]


def _at(tasks: Sequence[tuple[str, Problem]], settings: GrpoSettings, position: int) -> Problem:
    around, index = divmod(position, len(tasks))
    return tasks[_round(len(tasks), settings.seed, around)[index]][1]


@lru_cache(maxsize=2)
def _round(count: int, seed: int, around: int) -> list[int]:
    return permutation(count, seed, "grpo", around)


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
        precision=settings.precision,
        micro_batch_tokens=settings.micro_batch_tokens,
        threads=threads(settings.threads),
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
    there = figures[settings.problems].get("train", 0) if settings.problems in figures else settings.prompts
    wanted = settings.prompts * (1 + settings.refills)
    if there < wanted:
        return f"{wanted} prompts a step, but only {there} problems to train on; lower `prompts` or `refills`"
    return None


def forecast(context: Context, settings: GrpoSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    calls = _rollouts(settings)
    return Forecast("steps", settings.steps, 0, {"calls": calls, "max_tokens": calls * settings.sampling.max_tokens})


def dependencies(settings: GrpoSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    verifiers = content_hash(verification.versions(settings.verifier, upstream[settings.problems], hashes))
    teacher = modelspec.dependency(settings.teacher.model, hashes) if settings.teacher else {}
    return {**modelspec.dependency(settings.student, hashes), **teacher, "verifiers": verifiers}


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
