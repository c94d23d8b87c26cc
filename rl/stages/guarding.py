"""How stages watch their runs: sets up `rl.guard` from settings and other stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill.prompting import Ask
from distill.stages.common import resolved, store_of
from distill.store.records import problems
from distill.types import Sampling
from pipeline.errors import InputError
from pipeline.stage import Context
from rl import rewards
from rl.alarms import History
from rl.guard import Guard, Watch, measuring
from rl.rewards import Verified

if TYPE_CHECKING:
    from distill.training.metrics import Recorder
    from rl.grpo import Policy
    from rl.stages.grpo import GrpoSettings
    from rl.stages.options import WatchedSettings


def of_rewards(
    context: Context, settings: GrpoSettings, policy: Policy, sampling: Sampling, ask: Ask, recorder: Recorder
) -> Guard:  # fmt: skip
    """The guard of a run on rewards."""
    each = settings.updates * settings.passes
    known = history(settings)
    return guard(context, settings, policy, sampling, ask, known, recorder, steps=settings.steps, updates=each)


def history(settings: GrpoSettings) -> History:
    """The empty history of a run on rewards: its components name what decides correctness and what else is rewarded."""
    judge = rewards.judge_of(settings.components)
    right = judge.label if judge else ""
    # What has no weight, or is punished, cannot be what the policy learned instead of being right.
    others = [c.label for c in settings.components if isinstance(c, Verified) and c.weight > 0 and c.label != right]
    stages = [stage.until for stage in settings.lengths or ()]
    return History(right, others, stages, "solved_without_preference" if settings.pass_rate else "reward")


def guard(
    context: Context, settings: WatchedSettings, policy: Policy, sampling: Sampling, ask: Ask, history: History,
    recorder: Recorder, *, steps: int, updates: int = 1,
) -> Guard:  # fmt: skip
    return Guard(
        store_of(context),
        context.fingerprint,
        history,
        settings.alarms,
        context.work / "good",
        watch=_watch(context, settings, policy, sampling, ask),
        on_alarm=settings.on_alarm,
        steps=steps,
        updates=updates,
        note=context.note,
        log=recorder.heldout,
    )


def _watch(
    context: Context, settings: WatchedSettings, policy: Policy, sampling: Sampling, ask: Ask
) -> Watch | None:  # fmt: skip
    if settings.watch is None:
        return None
    store = store_of(context)
    tasks = problems(store, context.inputs[settings.watch.problems].digest, "heldout")
    if not tasks:
        raise InputError(f"stage {context.name}: watch: {settings.watch.problems} holds out no problem")
    how = settings.watch
    return Watch(
        measuring(context, store, policy, tasks, sampling, how.samples, resolved(context, how.verifier), ask), how.every
    )
