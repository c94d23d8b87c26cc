"""Run grpo, ppo or opd: open what the stage needs, run the loop (`rl.grpo.train_grpo`), publish the student.

Settings are those of grpo; ppo and opd translate theirs. Called by the three stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from distill import modelspec
from distill.engines.options import VllmOptions
from distill.modelspec import Model
from distill.stages.common import ask_of, resolved, store_of
from distill.stages.devices import Held, beside_training, check_memory, threads
from distill.stages.student import load_student, publish
from distill.stages.vllm_judges import VllmJudges
from distill.types import Completion, Problem
from distill.verification import pool_of
from distill.verifiers.compose import Spec
from pipeline.errors import InputError, PipelineError
from pipeline.stage import Context, Output, Settings
from rl import rewards
from rl.rewards import Component, Verified
from rl.stages import drawing
from rl.stages.beside import in_vllm, process_rewards, reward_models, scoring, teachers

if TYPE_CHECKING:
    from distill.training.sampler import StudentSampler
    from rl.critic import Critic
    from rl.grpo import GrpoSettings as LoopSettings
    from rl.loss import Aggregation, PolicyLoss
    from rl.monitors import GrpoMetrics
    from rl.rewards import Scores
    from rl.stages.grpo import GrpoSettings
    from rl.step_credit import Mix
    from rl.vllm_policy import VllmPolicy

    Judge = Callable[[Sequence[tuple[Problem, Completion]]], list[Scores]]


def refine(
    context: Context, settings: GrpoSettings, *, about: str, card_settings: Settings, outcome: float = 1.0,
    critic: Critic | None = None,
) -> Output:  # fmt: skip
    """Train, and publish the student with a card that shows ``about`` and ``card_settings``. ``outcome`` is the
    weight of the reward beside a teacher's; with a ``critic``, rewards are compared with its estimates, not with each
    other."""
    from distill.training.metrics import Recorder
    from rl.draws import zero_variance
    from rl.grpo import train_grpo
    from rl.ledger import Ledger
    from rl.stages import guarding

    store = store_of(context)
    store.ingest()
    start = modelspec.find(settings.student, context.workspace, context.inputs, context.hashes)
    tasks, problem_keys = drawing.tasks(context, settings)
    beside = [*teachers(context, settings.teacher), *reward_models(context, settings.process)]
    check_memory(context, settings, start, samples=True, beside=beside)
    network, tokenizer = load_student(settings, start, samples=True)
    fitted = with_room(context, settings, start, network, beside)
    how, ask = _how(settings, critic), ask_of(context, settings.prompting, settings.thinking, settings.tasks[0].stage)
    with (
        closing(_policy(context, fitted, start, network, tokenizer, tasks[0].problems[0])) as policy,
        pool_of(store, context) as pool,
        Recorder(store, context, _shown(settings, critic), settings.log_to) as recorder,
        _mix(context, fitted, outcome, tokenizer) as mix,
    ):
        verifiers = resolved(context, rewards.verifiers(fitted.components))
        ledger = Ledger(
            store, context.fingerprint, how.sampling_at, problem_keys, pool, verifiers, context.stopping, ask,
            policy.name,
        )  # fmt: skip
        draws = drawing.draws(context, settings, tasks, ledger, problem_keys)
        guard = guarding.of_rewards(context, fitted, policy, how.sampling, ask, recorder)

        others = settings.teacher or settings.process  # they assign credit too
        judge = ledger.reward if others else _require_verdicts(context.name, fitted.components, ledger.reward)

        def record(metrics: GrpoMetrics) -> None:
            if settings.pass_rate:
                metrics = replace(metrics, solved_without_preference=draws.solved(metrics.step))
            recorder(metrics)
            guard.record(metrics)

        train_grpo(
            network,
            policy,
            how,
            sample=draws,
            reward=judge,
            mix=mix,
            ask=ask,
            checkpoints=context.work / "checkpoints",
            stop=context.stopping,
            recall=ledger.recall,
            on_rollouts=partial(drawing.written, settings, ledger, draws),
            on_updates=ledger.learned,
            on_step=record,
            before_save=recorder.flush,
            over=guard.over,
        )
    digest = publish(context, network, tokenizer, about, settings.student, card_settings, guard.card_entries())
    figures = guard.figures() | {"rollouts": ledger.count()} | recorder.last(guard.rolled_back_to)
    return Output(digest, figures | (zero_variance(draws, settings.steps) if settings.pass_rate else {}))


def _require_verdicts(stage: str, components: Sequence[Component], reward: Judge) -> Judge:
    """Wrap ``reward``: `PipelineError` if no verifier can judge any of a run's first rollouts, or one without which
    there is no reward cannot. Otherwise the run would continue to its end and learn nothing."""
    needed = {c.label for c in components if isinstance(c, Verified) and c.weight and not c.optional}
    heard = set[str]()

    def judge(asked: Sequence[tuple[Problem, Completion]]) -> list[Scores]:
        scores = reward(asked)
        heard.update(name for each in scores for name, score in each.items() if score is not None)
        if asked and (not heard or needed - heard):
            missing = f"{min(needed - heard, default='')}, which every reward needs, could judge none"
            who = missing if heard else "no verifier could judge any"
            raise PipelineError(
                f"stage {stage}: of the first {len(asked)} rollouts {who}, so there is nothing to learn; mend it or "
                "the problems' references (`distill verify` tries both on a file)"
            )
        return scores

    return judge


@contextmanager
def _mix(context: Context, settings: GrpoSettings, outcome: float, tokenizer: Any) -> Iterator[Mix]:
    """How credit is assigned: from the reward, the steps' rewards, and a teacher's log-probabilities."""
    from rl.step_credit import Mixture, outcome_alone

    teacher, process = settings.teacher, settings.process
    if teacher is None and process is None:
        yield outcome_alone
        return
    mixture = Mixture(outcome, leave_out_cut=settings.overlong == "filter")
    if process:
        steps = process_rewards(context, process, tokenizer)
        mixture = replace(mixture, steps=steps, step_weight=process.weight, step_form=process.form)
    if teacher is None:
        yield mixture
        return
    with scoring(context, teacher, tokenizer, settings.sampling.temperature, settings.micro_batch_tokens) as score:
        yield replace(mixture, teacher=score, teacher_weight=teacher.weight)


def _shown(settings: GrpoSettings, critic: Critic | None) -> tuple[str, ...]:
    """The metrics on the display."""
    own = "value_explained" if critic else "teacher_kl" if settings.teacher else "zero_variance"
    return ("reward", own, "entropy", "length", "grad_norm")


def with_room(
    context: Context, settings: GrpoSettings, start: Model, network: Any, beside: Sequence[Held]
) -> GrpoSettings:
    """``settings`` with the share of ``network``'s GPU that policy, teacher and judges may take, if in vLLM."""
    engine, teacher, judges = settings.engine, settings.teacher, _judges(context, settings)
    engines = {"policy": (start, engine)} if isinstance(engine, VllmOptions) else {}
    samples = not engines
    engines |= in_vllm(context, teacher) | judges.engines
    fitted = beside_training(engines, settings, start, network, beside, samples)
    if teacher and "teacher" in fitted:
        teacher = teacher.model_copy(update={"engine": fitted["teacher"]})
    if name := judges.lowered(_of_problems(context, settings), fitted):
        raise InputError(
            f"stage {context.name}: {name}, of the problems' own verifiers, runs in vllm on the GPU that trains, which "
            f"leaves it {fitted[name].gpu_memory_utilization:.2f} of the memory; where the problems name it, set its "
            "engine's gpu_memory_utilization to that or less, or its first_gpu to another GPU"
        )

    def with_shares(part: Any) -> Any:
        if part is None or not hasattr(part, "verifier"):  # a component that is no verifier's
            return part
        return part.model_copy(update={"verifier": judges.with_shares(part.verifier, fitted)})

    return with_shares(settings).model_copy(
        update={
            "engine": fitted.get("policy", engine),
            "teacher": teacher,
            "reward": settings.reward and [with_shares(component) for component in settings.reward],
            "watch": with_shares(settings.watch),
        }
    )


def _judges(context: Context, settings: GrpoSettings) -> VllmJudges:
    named = [*rewards.verifiers(settings.components).values(), settings.watch and settings.watch.verifier]
    return VllmJudges([*named, *_of_problems(context, settings)], context.hashes)


def _of_problems(context: Context, settings: GrpoSettings) -> list[Spec]:
    """The problems' own verifiers, where these judge."""
    own = [task.stage for task in settings.tasks] if None in rewards.verifiers(settings.components).values() else []
    if settings.watch and settings.watch.verifier is None:
        own.append(settings.watch.problems)
    return [spec for stage in own if stage in context.inputs for spec in context.inputs[stage].figures["verifiers"]]


def _policy(
    context: Context, settings: GrpoSettings, start: Model, network: Any, tokenizer: Any, probe: Problem
) -> StudentSampler | VllmPolicy:
    from distill.training.sampler import StudentSampler
    from distill.training.trials import open_engine
    from rl.vllm_policy import open_policy

    if isinstance(settings.engine, VllmOptions):
        return open_policy(
            network, tokenizer, start, settings.engine, context.work / "policy", probe, context.note, context.stopping
        )
    return StudentSampler(open_engine(network, tokenizer, context.fingerprint, settings.workers))


def _how(settings: GrpoSettings, critic: Critic | None) -> LoopSettings:
    from distill.training.optimizer import OptimizerSettings
    from rl.grpo import GrpoSettings as LoopSettings

    loss, aggregation = loss_of(settings)
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
        loss=loss,
        aggregation=aggregation,
        updates=settings.updates,
        passes=settings.passes,
        refills=settings.refills,
        overlong=settings.overlong,
        overlong_buffer=settings.overlong_buffer,
        reward=settings.components,
        lengths=tuple((stage.until, stage.max_tokens) for stage in settings.lengths or ()),
        critic=critic,
        precision=settings.precision,
        micro_batch_tokens=settings.micro_batch_tokens,
        threads=threads(settings.threads),
        devices=settings.devices,
        parallel=settings.parallel,
        checkpoint_seconds=10.0,
    )


def loss_of(settings: GrpoSettings) -> tuple[PolicyLoss, Aggregation]:
    """The loss that the settings name, with their changes to it, and its aggregation over tokens."""
    from rl.loss import RECIPES, EngineCorrection

    terms, aggregation = RECIPES[settings.loss]
    by_token = settings.teacher is not None or settings.process is not None
    changed = replace(
        terms,
        level="sequence_token" if by_token and terms.level == "sequence" else terms.level,
        clip_low=terms.clip_low if settings.clip_low is None else settings.clip_low,
        clip_high=terms.clip_high if settings.clip_high is None else settings.clip_high,
        clip_cap=settings.clip_cap,
        correction=EngineCorrection(
            settings.engine_correction, settings.engine_level, settings.engine_floor, settings.engine_cap
        ),
        kl=settings.kl,
        estimator=settings.kl_estimator,
        kl_corrected=settings.kl_corrected,
    )
    return changed, aggregation
