"""gkd: generalised knowledge distillation; the student learns its teacher's whole distributions.

It trains on the teacher's traces and on its own samples (`rl.gkd`), with a divergence over all tokens or the
teacher's likeliest (`distill.training.divergence`). The teacher runs in this process beside the student, because its
hidden states are needed. A teacher in vLLM, which scores only single tokens, works with `opd`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from distill import modelspec
from distill.engines.options import SamplingSettings, TransformersOptions
from distill.lacking import lacking
from distill.modelspec import Model, ModelName
from distill.prompting import Ask, asking
from distill.stages.common import RewardModel, VerifierSpec, resolved, store_of
from distill.stages.devices import check_memory, foreseen, too_large
from distill.stages.student import load_student, publish
from distill.stages.supervised import Lesson, SupervisedSettings, learning_rate, lessons, supervised
from distill.store.records import problem_of
from distill.types import Completion, Problem
from distill.verification import pool_of
from distill.verifiers import VerifierPool
from pipeline.fingerprint import FileHashes
from pipeline.manifest import Manifest
from pipeline.stage import Context, Forecast, Input, Operational, Output, Stage
from rl.alarms import History
from rl.stages.beside import loaded
from rl.stages.options import WatchedSettings

if TYPE_CHECKING:
    from distill.engines.transformers import TransformersEngine
    from distill.training.batching import Order
    from distill.training.divergence import NegativeDivergence
    from distill.training.loop import StepMetrics
    from rl.gkd import Batches
    from rl.monitors import SampleMetrics

JUDGE = "verifier"

ABOUT = "A student trained by generalised knowledge distillation on its teacher's distributions."


def _in_this_process(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, dict) else value
    if kind == "vllm":
        raise ValueError("a teacher in vllm tells no whole distributions: take transformers, or learn from it by `opd`")
    return {"kind": value} if isinstance(value, str) else value


class GkdSettings(WatchedSettings, SupervisedSettings):
    """Defaults are TRL's, but for the learning rate, which is `sft`'s."""

    data: Annotated[str, Input(accepts=("selection",))]
    """The teacher's traces. The student samples answers to their problems."""
    teacher: ModelName
    """It must use the student's tokenizer."""
    teacher_engine: Annotated[TransformersOptions, BeforeValidator(_in_this_process)] = TransformersOptions()
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """0 is the forward KL divergence, 1 the reverse; in between, the generalised Jensen-Shannon divergence."""
    on_policy: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of steps on the student's own samples (lambda); the others use the teacher's traces."""
    top_k: Annotated[int | None, Field(ge=1)] = None
    """Compare only this many of the teacher's likeliest tokens one by one, all others as one. Default: all tokens."""
    temperature: Annotated[float, Field(gt=0)] = 0.9
    """Temperature at which both distributions are compared."""
    sampling: SamplingSettings = SamplingSettings()
    verifier: Annotated[VerifierSpec | None, RewardModel] = None
    """Judges the samples, for curves and alarms only. Default: each problem's own verifier."""
    workers: Annotated[int, Operational(), Field(ge=0)] = 0
    """Sampling processes. 0 means one per core for a small model on a CPU, otherwise one."""

    @model_validator(mode="after")
    def _can_be(self) -> GkdSettings:
        if self.devices > 1:
            raise ValueError("devices: a teacher's distributions can be learned on one device only")
        if self.sampling.temperature <= 0 and self.on_policy:
            raise ValueError("on_policy needs sampling.temperature above 0")
        return self


def run(context: Context, settings: GkdSettings) -> Output:
    from distill.training.batching import Order
    from distill.training.loop import train
    from distill.training.metrics import Recorder
    from distill.training.trials import open_engine
    from rl.gkd import GkdMetrics
    from rl.stages import guarding

    store = store_of(context)
    start = modelspec.find(settings.student, context.workspace, context.inputs, context.hashes)
    teacher = modelspec.find(settings.teacher, context.workspace, context.inputs, context.hashes)
    check_memory(context, settings, start, samples=True, beside=[(teacher, settings.teacher_engine.dtype)])
    network, tokenizer = load_student(settings, start)
    rate, chosen = learning_rate(context, settings, network)
    ask = asking(settings.prompting, key=f"{context.name}.prompting")
    found, dropped = lessons(context, settings, network, tokenizer, ask)
    measure = _measure(settings, teacher, tokenizer)
    with (
        closing(open_engine(network, tokenizer, context.fingerprint, settings.workers)) as policy,
        pool_of(store, context) as pool,
        Recorder(store, context, ("loss", "learning_rate"), settings.log_to) as recorder,
    ):
        order = Order(tuple(len(example) for _, example in found), settings.batch_size, settings.seed)
        how = replace(supervised(settings, rate), epochs=1, steps=order.steps_per_epoch * settings.epochs)
        sampled: dict[int, SampleMetrics] = {}
        source = _batches(context, settings, found, order, policy, pool, ask, sampled)
        guard = guarding.guard(
            context, settings, policy, source.sampling, source.ask, History(JUDGE), recorder,
            steps=how.steps or 0,
        )  # fmt: skip

        def record(metrics: StepMetrics) -> None:
            step_metrics = GkdMetrics(metrics.step, metrics, sampled.pop(metrics.step, None))
            recorder(step_metrics)
            guard.record(step_metrics)

        train(
            network, source, how, checkpoints=context.work / "checkpoints", stop=context.stopping,
            on_step=record, before_save=recorder.flush, measure=measure, over=guard.over,
        )  # fmt: skip
    digest = publish(context, network, tokenizer, ABOUT, settings.student, settings, chosen | guard.card_entries())
    figures = guard.figures() | {"examples": len(found), "dropped": len(dropped), "learning_rate": rate}
    return Output(digest, figures | {"loss": recorder.last(guard.rolled_back_to).get("loss")})


def _measure(settings: GkdSettings, found: Model, tokenizer: Any) -> NegativeDivergence:
    from distill.training.divergence import NegativeDivergence
    from distill.training.fixed import fixed

    teacher = fixed(loaded(found, settings.teacher_engine, tokenizer, settings.teacher))
    return NegativeDivergence(teacher, settings.beta, settings.top_k, settings.temperature)


def _batches(
    context: Context, settings: GkdSettings, found: list[Lesson], order: Order, policy: TransformersEngine,
    pool: VerifierPool, ask: Ask, sampled: dict[int, SampleMetrics],
) -> Batches:  # fmt: skip
    """The batches, whose samples are stored before they are learned from. ``sampled`` collects the metrics of a step's
    samples, by step (from 1)."""
    from rl.gkd import Batches
    from rl.ledger import Ledger
    from rl.monitors import sample_metrics
    from rl.update import Rollout

    sampling = settings.sampling.sampling(settings.seed)
    problems = [problem_of(row) for row, _ in found]
    keys = {problem.id: row["problem_key"] for problem, (row, _) in zip(problems, found, strict=True)}
    ledger = Ledger(
        store_of(context), context.fingerprint, lambda step: sampling, keys, pool,
        {JUDGE: resolved(context, settings.verifier)}, context.stopping, ask,
    )  # fmt: skip

    def write(step: int, samples: Sequence[tuple[Problem, Completion]]) -> None:
        rewards = [scores[JUDGE] for scores in ledger.reward(samples)]
        none = [(0.0,) * len(c.token_ids) for _, c in samples]
        rows = zip(samples, rewards, none, strict=True)
        rollouts = [Rollout(step + 1, p, 0, c, r, a, bool(c.token_ids)) for (p, c), r, a in rows]
        ledger.write(step + 1, rollouts)
        sampled[step + 1] = sample_metrics(rollouts)

    examples = [example for _, example in found]
    return Batches(
        examples, problems, order, policy, sampling, settings.on_policy, context.stopping, ask, ledger.recall, write
    )  # fmt: skip


def forecast(context: Context, settings: GkdSettings, expected: Mapping[str, Mapping[str, Any]]) -> Forecast:
    steps = settings.steps(expected)
    return Forecast("steps") if steps is None else Forecast("steps", steps, 0, foreseen(settings, samples=True))


def dependencies(settings: GkdSettings, hashes: FileHashes, upstream: Mapping[str, Manifest]) -> Mapping[str, str]:
    return {**modelspec.dependency(settings.student, hashes), **modelspec.dependency(settings.teacher, hashes)}


def refuse(settings: GkdSettings, figures: Mapping[str, Mapping[str, Any]]) -> str | None:
    return (
        settings.unteachable(figures)
        or settings.unwatchable(figures)
        or lacking(settings)
        or too_large(settings, samples=True)
    )


STAGE = Stage(
    kind="gkd",
    about="distil a teacher's distributions (generalised JSD), on its traces and the student's own samples",
    settings=GkdSettings,
    produces="student",
    run=run,
    forecast=forecast,
    dependencies=dependencies,
    refuse=refuse,
    version=2,
)
