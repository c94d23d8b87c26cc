"""How the grpo stage draws its problems: sets up `rl.draws` from settings, other stages and the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from distill.stages.common import store_of
from distill.store.records import problems
from pipeline.errors import InputError
from pipeline.stage import Context
from rl import rewards
from rl.draws import Draws, PassRates, Preference, Task, most
from rl.rewards import Verified

if TYPE_CHECKING:
    from rl.ledger import Ledger
    from rl.stages.grpo import GrpoSettings
    from rl.update import Rollout


def tasks(context: Context, settings: GrpoSettings) -> tuple[list[Task], dict[str, str]]:
    """The tasks, and the key of each of their problems by the problem's id."""
    found: list[Task] = []
    key_of: dict[str, str] = {}
    every = most([task.weight for task in settings.tasks], settings.prompts, 1 + settings.refills)
    for task, wanted in zip(settings.tasks, every, strict=True):
        rows = problems(store_of(context), context.inputs[task.stage].digest, "train")
        own = [(key, problem) for key, problem in rows if task.source in (None, problem.source)]
        if not own:
            sources = ", ".join(sorted({problem.source for _, problem in rows}))
            raise InputError(
                f"stage {context.name}: {task.stage} has no problem of source {task.source!r}, only {sources}"
            )
        if len(own) < wanted:
            raise InputError(
                f"stage {context.name}: {wanted} prompts per step of source {task.source!r} of {task.stage}, which has "
                f"{len(own)}; lower `prompts`, `refills` or its weight, or take more problems (`train`, --limit)"
            )
        found.append(Task([problem for _, problem in own], task.weight))
        for key, problem in own:
            if problem.id in key_of:
                raise InputError(
                    f"stage {context.name}: two problems of {task.stage} have one id, or two tasks hold one problem "
                    f"({problem.name}); give each source a `source` of its own, and each task another source"
                )
            key_of[problem.id] = key
    return found, key_of


def draws(
    context: Context, settings: GrpoSettings, tasks: list[Task], ledger: Ledger, key_of: Mapping[str, str]
) -> Draws:
    """The problems that each step draws, given the results of the rollouts of earlier attempts."""
    prefer = settings.pass_rate
    if prefer is None:
        return Draws(tasks, settings.prompts, 1 + settings.refills, settings.seed)
    judge = _judge(settings)
    rates = PassRates(_known(context, prefer.known_from, judge, ledger, key_of) if prefer.known_from else {})
    for step, passes in ledger.passes(judge.label).items():
        rates.add(step, passes)
    preference = Preference(prefer.aim, prefer.strength)
    return Draws(tasks, settings.prompts, 1 + settings.refills, settings.seed, preference, rates)


def _known(
    context: Context, stage: str, judge: Verified, ledger: Ledger, key_of: Mapping[str, str]
) -> dict[str, tuple[float, float]]:
    """How often each problem was solved according to another stage: its verdicts, or an earlier run's rollouts."""
    manifest = context.inputs[stage]
    if manifest.identity.kind == "verify":
        rows = store_of(context).rows(
            "SELECT v.problem_key, v.score FROM members m JOIN verdicts v ON m.row_key = v.verdict_key "
            "WHERE m.collection = ? AND v.score IS NOT NULL ORDER BY m.position",
            [manifest.digest],
        )
        names = {key: name for name, key in key_of.items()}
        passes = [(names[r["problem_key"]], r["score"] >= 0.5) for r in rows if r["problem_key"] in names]
        earlier = {0: passes} if passes else {}
    else:
        earlier = ledger.passes(judge.label, manifest.fingerprint)
    if not earlier:
        raise InputError(f"stage {context.name}: pass_rate.known_from: {stage} has no results for these problems")
    rates = PassRates()
    for step, passes in earlier.items():
        rates.add(step, passes)
    return rates.at(max(earlier))


def _judge(settings: GrpoSettings) -> Verified:
    """The component that decides whether a problem is solved."""
    judge = rewards.judge_of(settings.components)
    assert judge is not None  # the settings were checked
    return judge


def written(settings: GrpoSettings, ledger: Ledger, draws: Draws, step: int, rollouts: Sequence[Rollout]) -> None:
    """Store rollouts before they feed an update or a draw."""
    ledger.write(step, rollouts)
    judge = _judge(settings)
    values = [(r.problem.id, r.components[judge.label]) for r in rollouts]
    draws.rates.add(step, [(name, None if v is None else rewards.passes(judge, v)) for name, v in values])
