"""Rollouts in the store: judged, written before the update that they feed, read back after a crash.

`Ledger` holds the callbacks of `rl.grpo.train_grpo` that need the store and a verifier pool. With the rows kept here,
one SQL query explains any update: text, log-probabilities, verdict, reward, advantage, step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from distill import keys
from distill.engines.base import response_of
from distill.generation import trace_of
from distill.prompting import Ask, plainly
from distill.store import Store
from distill.store.records import Row, completion_of, trace_row, verdict_of, verdict_row
from distill.thinking import Response
from distill.types import Completion, Problem, Sampling, Verdict
from distill.verifiers import VerifierPool, settled
from distill.verifiers.base import Stopping, never
from distill.verifiers.compose import Spec
from pipeline.fingerprint import canonical
from pipeline.stage import stop_check
from rl.grpo import request
from rl.rewards import Scores
from rl.update import Rollout, UpdateRecord, aligned

INGEST_STEPS = 10


class Ledger:
    """What one run of GRPO writes to the store. ``sampling`` returns the sampling settings of a step (from 0);
    ``engine`` is the name of the engine that samples. ``problem_keys`` maps problem ids to their keys, ``verifiers``
    the reward's components to their verifiers; None is each problem's own."""

    def __init__(
        self, store: Store, run: str, sampling: Callable[[int], Sampling], problem_keys: Mapping[str, str],
        pool: VerifierPool, verifiers: Mapping[str, Spec | None], stopping: Stopping = never, ask: Ask = plainly,
        engine: str = "transformers",
    ) -> None:  # fmt: skip
        self._store, self._run, self._sampling = store, run, sampling
        self._problem_keys, self._pool, self._verifiers = problem_keys, pool, verifiers
        self._stopping, self._ask, self._engine = stopping, ask, engine
        self._counting: dict[str, Spec] = {}
        self._verdicts: dict[tuple[str, str], Verdict] = {}
        """Of a step's completions, by their keys and the verifier's settings."""
        self._kept: set[int] = set()
        if store.path.exists():
            rows = store.rows("SELECT DISTINCT step FROM rollouts WHERE run = ?", [run])
            self._kept = {row["step"] for row in rows}

    def reward(self, asked: Sequence[tuple[Problem, Completion]]) -> list[Scores]:
        """Each verifier's score of each completion, by component; None if unverifiable. What was judged before the run
        was killed is not judged again, nor for a second component: a judge would be paid twice, and might change its
        mind."""
        wanted: dict[tuple[str, str], tuple[Spec, Problem, Response]] = {}
        for problem, c in asked:
            for spec in self._verifiers.values():
                spec = problem.verifier if spec is None else spec
                if (key := (c.key, canonical(self._settled(spec)))) not in self._verdicts:
                    wanted[key] = spec, problem, response_of(c)
        items = ((key, *what) for key, what in wanted.items())
        self._verdicts.update(self._pool.verify_many(items, self._stopping))
        stop_check(self._stopping)
        return [{name: self._judged(name, problem, c)[1].score for name in self._verifiers} for problem, c in asked]

    def _judged(self, name: str, problem: Problem, completion: Completion) -> tuple[Spec, Verdict]:
        spec = self._verifiers[name]
        settled = self._settled(problem.verifier if spec is None else spec)
        return settled, self._verdicts[completion.key, canonical(settled)]

    def _settled(self, spec: Spec) -> Spec:
        name = canonical(spec)
        return self._counting.get(name) or self._counting.setdefault(name, settled(spec))

    def write(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Store the rollouts of ``step`` (from 1), before the updates that they feed."""
        if step not in self._kept:
            parts = [self._rows(rollout) for rollout in rollouts]
            for table, rows in zip(("traces", "verdicts", "rollouts"), zip(*parts, strict=True), strict=True):
                self._store.append(table, list(chain.from_iterable(rows)))  # one verdict per component
        self._verdicts.clear()
        if step % INGEST_STEPS == 0:
            self._store.ingest_if_free()

    def _rows(self, rollout: Rollout) -> tuple[list[Row], list[Row], list[Row]]:
        completion, problem = rollout.completion, rollout.problem
        problem_key = self._problem_keys[problem.id]
        key = self._key(rollout)
        weights = f"{self._run}@{rollout.step - 1}"
        trace = trace_of(
            completion, self._sampling(rollout.step - 1),
            model=weights, engine=self._engine, sample_index=rollout.index, asked=self._ask(problem),
        )  # fmt: skip
        verdicts: dict[str, Row] = {}  # by key: two components may share a verifier
        for name in self._verifiers:
            spec, verdict = self._judged(name, problem, completion)
            verdict_key = keys.verdict_key(key, problem_key, verdict.verifier, verdict.version, canonical(spec))
            verdicts[verdict_key] = verdict_row(verdict_key, key, problem_key, verdict, spec)
        facts = {
            "trace_key": key,
            "problem_key": problem_key,
            "run": self._run,
            "step": rollout.step,
            "group_index": rollout.index,
            "reward": rollout.reward,
            "advantage": rollout.advantage,
            "used": rollout.trained,
            "teacher_logprobs": list(rollout.teacher) or None,
            "state_values": aligned(completion, rollout.assessment.values, None) if rollout.assessment else None,
            "value_targets": aligned(completion, rollout.assessment.targets, None) if rollout.assessment else None,
            "step_rewards": list(rollout.steps) or None,
            "components": json.dumps(dict(rollout.components)) if rollout.components else None,
            "advantages": list(rollout.advantages) if len(set(rollout.advantages)) > 1 else None,
        }
        row = trace_row(replace(trace, key=key), keys.prompt_key(problem))
        return [row], list(verdicts.values()), [facts]

    def learned(self, records: Sequence[UpdateRecord]) -> None:
        """Store what an update learned from each rollout. An update repeated after a crash gives the same rows."""
        rows = [
            {
                "run": self._run,
                "optimizer_step": record.update,
                "trace_key": self._key(record.rollout),
                "weight": record.weight,
                "logprobs": list(record.logprobs),
                "old_logprobs": list(record.old) or None,
                "reference_logprobs": list(record.reference) or None,
            }
            for record in records
        ]
        self._store.append("updates", rows)

    def _key(self, rollout: Rollout) -> str:
        return keys.rollout_key(self._run, rollout.step, self._problem_keys[rollout.problem.id], rollout.index)

    def count(self) -> int:
        """The number of rollouts of this run in the store."""
        (row,) = self._store.rows("SELECT count(*) AS rollouts FROM rollouts WHERE run = ?", [self._run])
        return int(row["rollouts"])

    def passes(self, name: str, run: str = "") -> dict[int, list[tuple[str, bool | None]]]:
        """(problem, whether it was solved; None if it could not be judged) of each rollout of each step, according to
        the verifier of component ``name``: of this run, or of an earlier ``run``."""
        rows = self._store.rows(
            "SELECT r.step, r.problem_key, p.verifier, v.settings, v.score FROM rollouts r "
            "JOIN problems p USING (problem_key) JOIN verdicts v USING (trace_key, problem_key) "
            "WHERE r.run = ? ORDER BY r.trace_key",
            [run or self._run],
        )
        problem_of = {key: problem for problem, key in self._problem_keys.items()}
        found: dict[int, list[tuple[str, bool | None]]] = {}
        for row in rows:
            spec, score = self._verifiers[name], row["score"]
            judge = self._settled(row["verifier"] if spec is None else spec)
            if row["problem_key"] in problem_of and row["settings"] == canonical(judge):
                passed = None if score is None else score >= 0.5
                found.setdefault(row["step"], []).append((problem_of[row["problem_key"]], passed))
        return found

    def recall(self, step: int) -> Iterator[Completion]:
        """What an earlier attempt sampled for ``step`` (from 0, as `train_grpo` counts). Its verdicts come with it."""
        if step + 1 not in self._kept:
            return
        rows = self._store.rows(
            "SELECT t.*, p.problem_id FROM rollouts r JOIN traces t USING (trace_key) "
            "JOIN problems p USING (problem_key) WHERE r.run = ? AND r.step = ?",
            [self._run, step + 1],
        )
        names: dict[str, str] = {}
        for row in rows:
            problem = Problem(row["problem_id"], "", "", "", "")
            names[row["trace_key"]] = request(self._sampling(step), step, problem, row["sample_index"]).key
        judged = self._store.rows(
            "SELECT v.* FROM rollouts r JOIN verdicts v USING (trace_key, problem_key) "
            "WHERE r.run = ? AND r.step = ? ORDER BY v.created DESC",  # the run's own is the first of its kind
            [self._run, step + 1],
        )
        self._verdicts = {(names[row["trace_key"]], row["settings"]): verdict_of(row) for row in judged}
        yield from (completion_of(row, names[row["trace_key"]]) for row in rows)
