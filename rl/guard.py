"""Watch a run that learns from its own samples: measure held-out problems every few steps, raise alarms, act on them.

`Guard.over` is asked before every step, and after the last (``over`` of `rl.grpo.train_grpo`, and of
`distill.training.loop.train` for gkd). Everything that it knows is in the store: metrics of the steps, texts and
verdicts of the held-out problems, alarms. So a run that is killed anywhere measures nothing twice when it resumes, and
ends as it would have. The samples are ordinary traces, of the model `RUN@STEP`. A rollback restores the checkpoint
with the best held-out pass@1, the earliest of equals; without held-out problems nothing tells which one is good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

from distill import verification
from distill.evaluation.statistics import clustered_mean
from distill.generation import missing_of, sample, wanted
from distill.prompting import Ask
from distill.store import Store
from distill.training.learner import Learner
from distill.training.metrics import figures
from distill.types import Completion, Outcome, Problem, Request, Sampling
from distill.verifiers.compose import Spec
from pipeline.errors import InputError, PipelineError
from pipeline.stage import Context
from rl.alarms import Alarm, AlarmSettings, History, raised
from rl.grpo import Policy
from rl.stages.options import OnAlarm

Measure = Callable[[int], Mapping[str, Sequence[float]]]
"""0 or 1 for each judged sample of each held-out problem, under the weights after this many steps."""


@dataclass(frozen=True, slots=True)
class Watch:
    measure: Measure
    every: int


class Guard:
    """``good`` is the guard's own directory, for the checkpoint that a rollback restores. ``log`` receives what was
    measured after a step."""

    def __init__(
        self, store: Store, run: str, history: History, limits: AlarmSettings, good: Path, *,
        watch: Watch | None = None, on_alarm: OnAlarm = "warn", steps: int, updates: int = 1,
        note: Callable[[str], None] = lambda text: None,
        log: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
    ) -> None:  # fmt: skip
        self._store, self._run, self._history, self._limits, self._good = store, run, history, limits, good
        self._watch, self._on_alarm, self._steps, self._updates, self._note = watch, on_alarm, steps, updates, note
        self._log = log
        self._best, self._best_step = -1.0, 0
        self._begun, self._ended = False, steps
        self.alarms: dict[str, Alarm] = {}
        self.rolled_back_to: int | None = None

    def record(self, metrics: Any) -> None:
        """Record the metrics of a step (such as `rl.monitors.GrpoMetrics`)."""
        for name, value in figures(metrics).items():
            self._history.add(metrics.step, name, value)

    def over(self, learner: Learner) -> bool:
        """Whether the run ends here. Raises `PipelineError` if an alarm stops it."""
        step = learner.done // self._updates
        if not self._begun:
            self._load_history(step)
        if self._due(step):
            self._measure(step, learner)
        self._raise_alarms(step)
        if not self.alarms or self._on_alarm == "warn":
            return False
        if self._on_alarm == "stop":
            self._stop(step, learner)
        self._roll_back(step, learner)
        return True

    def _raise_alarms(self, step: int) -> None:
        fresh = [alarm for alarm in raised(self._history, step, self._limits) if alarm.name not in self.alarms]
        for alarm in fresh:
            self.alarms[alarm.name] = alarm
            self._note(f"alarm {alarm.name} at step {step}: {alarm.evidence}")
        self._store.append("alarms", [{"run": self._run, **asdict(alarm)} for alarm in fresh])

    def _stop(self, step: int, learner: Learner) -> NoReturn:
        learner.save({})
        first = next(iter(self.alarms.values()))
        raise PipelineError(
            f"stopped at step {step} by the alarm {first.name}: {first.evidence}; the training so far is kept: "
            "set `on_alarm: warn` to continue from here"
        )

    def _roll_back(self, step: int, learner: Learner) -> None:
        learner.resume(self._good)
        if learner.done != self._best_step * self._updates:
            raise PipelineError(
                f"{self._good}: the checkpoint of step {self._best_step} is gone or damaged; delete "
                f"{self._good.parent} to start over"  # --force would not help: it drops complete results only
            )
        self.rolled_back_to, self._ended = learner.done // self._updates, step
        self._note(f"rolled back to step {self.rolled_back_to}, whose held-out pass@1 was {self._best:.3f}")

    def _load_history(self, step: int) -> None:
        """Load what earlier attempts had seen by ``step``. They may have got further, which does not count yet."""
        self._begun = True
        self._store.ingest()
        seen = {"run": self._run, "step": step}
        for row in self._store.rows("SELECT * FROM metrics WHERE run = $run AND step BETWEEN 1 AND $step", seen):
            self._history.add(row["step"], row["name"], row["value"])
        known = "SELECT name, step, evidence, value, threshold FROM alarms WHERE run = $run AND step <= $step"
        self.alarms = {row["name"]: Alarm(**row) for row in self._store.rows(f"{known} ORDER BY step, name", seen)}
        for earlier in filter(self._due, range(step)):
            self._take_scores(earlier)

    def _due(self, step: int) -> bool:
        return self._watch is not None and (step % self._watch.every == 0 or step == self._steps)

    def _take_scores(self, step: int) -> bool:
        """Take the scores of a step. Returns whether they are the best so far."""
        assert self._watch is not None
        scores = self._history.heldout[step] = self._watch.measure(step)
        better = clustered_mean(scores).value > self._best
        if better:
            self._best, self._best_step = clustered_mean(scores).value, step
        return better

    def _measure(self, step: int, learner: Learner) -> None:
        learner.gather()
        if learner.done:
            learner.save({})  # measuring takes a while; if it is interrupted, the step is not lost
        if self._take_scores(step):
            learner.save({}, self._good)
        value = clustered_mean(self._history.heldout[step]).value
        self._note(f"held-out pass@1 at step {step}: {value:.3f}")
        name = "heldout_pass_at_1"
        self._store.append("metrics", [{"run": self._run, "step": step, "name": name, "value": value}])
        self._log(step, {name: value})

    def card_entries(self) -> dict[str, str]:
        """For the student's card: the step that it comes from, if that is not the last."""
        if self.rolled_back_to is None:
            return {}
        alarms = "; ".join(f"{alarm.name} at step {alarm.step}: {alarm.evidence}" for alarm in self.alarms.values())
        return {"rolled back to step": f"{self.rolled_back_to} ({alarms})"}

    def figures(self) -> dict[str, Any]:
        """For the manifest: how many steps were made, the step that the student comes from if that is not the last, and
        the alarms that were raised."""
        found: dict[str, Any] = {"steps": self._ended}
        if self.rolled_back_to is not None:
            found["rolled_back_to"] = self.rolled_back_to
        if self.alarms:
            found["alarms"] = ", ".join(f"{alarm.name} at step {alarm.step}" for alarm in self.alarms.values())
        return found


class _Sampler:
    """A policy as an engine whose model is the run's after some number of steps."""

    def __init__(self, policy: Policy, model: str) -> None:
        self._policy, self.name, self.model = policy, policy.name, model

    def generate(self, requests: Iterable[Request], stopping: Callable[[], bool]) -> Iterator[Completion]:
        self._policy.refresh()
        return self._policy.generate(list(requests), stopping)


class _Quiet:
    """A context that reports no progress: the stage's own progress counts steps."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def progress(self, done: int, total: int | None, **figures: Any) -> None:
        pass


def measuring(
    context: Context, store: Store, policy: Policy, tasks: Sequence[tuple[str, Problem]], sampling: Sampling,
    samples: int, verifier: Spec | None, ask: Ask,
) -> Measure:  # fmt: skip
    """A `Measure` that samples what the store lacks for these problems and has it judged."""
    quiet = cast(Context, _Quiet(context))

    def measure(step: int) -> Mapping[str, Sequence[float]]:
        model = f"{context.fingerprint}@{step}"
        wishes = wanted(tasks, model, sampling, samples, ask)
        missing, present = missing_of(store, wishes)
        if missing:
            sample(store, cast(Any, _Sampler(policy, model)), missing, present, quiet)
        judged = [(wish.key, wish.problem_key, wish.problem) for wish in wishes]
        verdicts = verification.make_verdicts(
            store, verification.judgements(judged, verifier, context.hashes), quiet, workers=1
        )
        scores: dict[str, list[float]] = defaultdict(list)
        for row in verification.scores(store, verdicts):
            if row["outcome"] != Outcome.UNVERIFIABLE:
                scores[row["problem_key"]].append(float(row["outcome"] == Outcome.CORRECT))
        if not scores:
            raise InputError(
                f"stage {context.name}: watch: none of the answers to {len(tasks)} held-out problems can be judged, so "
                "there is no pass@1; give the problems a reference, or set another `watch.verifier`"
            )
        return scores

    return measure
