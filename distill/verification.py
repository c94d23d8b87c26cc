"""Judge the traces that have no verdict yet, and store the verdicts.

The one loop behind the verify and evaluate stages. Verifying again never generates again: a verdict's key is made of
the trace, the verifier, its version and its settings. A changed verifier therefore finds all of its verdicts missing,
and the old ones stay.

A timeout, a crash or a lack of memory may be the machine's fault, so the first such failure is not a verdict yet: it is
stored under a separate key, and the next run judges that trace once more. The result of that is the verdict, even if it
is a second failure. An exception of the verifier is the verdict without a second run. But if a verifier fails on every
trace that it is given, it is broken or lacks something that can be fixed: the stage fails, and none of these failures,
exceptions included, becomes a verdict. The verdicts of other verifiers are kept. If the verifier judges only one
problem, among those of others, that problem may be at fault and must not stop the rest: its exceptions then count like
timeouts.
See docs/design/007-failures.md.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill import keys, verifiers
from distill.spending import Spending
from distill.store import Store
from distill.store.appending import Appender
from distill.store.records import Row, batched, problem_of, verdict_row
from distill.thinking import Response
from distill.types import Outcome, Problem, Verdict
from distill.verifiers import VerifierPool
from distill.verifiers.compose import Spec
from distill.verifiers.run import reads_thinking
from pipeline.errors import PipelineError
from pipeline.fingerprint import FileHashes, canonical
from pipeline.manifest import Manifest
from pipeline.stage import Context, stop_check

SHOWN_SECONDS = 0.5
By = tuple[str, str]
"""A verifier's name and version: two of your own may have the same name, and differ in their files."""
PORTION = 50_000
"""The most texts held at a time. It is large, because each portion takes a scan of the traces."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One verdict that should exist: of this trace, by this verifier in its current version."""

    key: str
    trace_key: str
    problem_key: str
    problem: Problem
    verifier: Spec
    name: str
    version: str
    settled: Spec
    """The verifier without the settings that change no verdict."""

    @property
    def by(self) -> By:
        return self.name, self.version


class Judges:
    """Chooses the verifier of a trace: ``verifier``, or the problem's own if that is None. Builds each only once."""

    def __init__(self, verifier: Spec | None, hashes: FileHashes) -> None:
        self._verifier, self._hashes = verifier, hashes
        self._made: dict[str, tuple[str, str, Spec, str]] = {}
        self.versions: dict[str, str] = {}
        """The version of each verifier that judges, by its spec in canonical form."""

    def judgement(self, trace: str, problem_key: str, problem: Problem) -> Judgement:
        """The verdict that is wanted for a trace (given by key) of a problem."""
        spec: Spec = problem.verifier if self._verifier is None else self._verifier
        text = canonical(spec)
        if text not in self._made:
            built, settled = verifiers.build(spec, self._hashes), verifiers.settled(spec)
            self._made[text] = built.name, built.version, settled, canonical(settled)
            self.versions[text] = built.version
        name, version, settled, settings = self._made[text]
        key = keys.verdict_key(trace, problem_key, name, version, settings)
        return Judgement(key, trace, problem_key, problem, spec, name, version, settled)


def judgements(
    traces: Sequence[tuple[str, str, Problem]], verifier: Spec | None, hashes: FileHashes
) -> list[Judgement]:
    """The verdicts wanted for (trace key, problem key, problem), by the problem's own verifier if none is given."""
    judges = Judges(verifier, hashes)
    return [judges.judgement(*trace) for trace in traces]


def used(wishes: Sequence[Judgement]) -> dict[str, str]:
    """The version of each verifier that judges, by its spec in canonical form."""
    return {canonical(wish.verifier): wish.version for wish in wishes}


def version_of(spec: str, hashes: FileHashes) -> str:
    """The current version of a verifier; ``spec`` is in canonical form."""
    return verifiers.build(json.loads(spec), hashes).version


def versions(verifier: Spec | None, problems: Manifest, hashes: FileHashes) -> dict[str, str]:
    """What a stage that judges depends on: the version of the given verifier, or of those that its problems name."""
    specs: list[Spec] = problems.figures["verifiers"] if verifier is None else [verifier]
    return {canonical(verifiers.settled(spec)): verifiers.build(spec, hashes).version for spec in specs}


def asks(verifier: Spec) -> bool:
    """Whether a verifier contains a judge, which calls an engine."""
    return bool(getattr(verifiers.build(verifier), "most", {}))


def pool_of(store: Store, context: Context, workers: int = 1) -> VerifierPool:
    """The pool of verifiers for a stage. The cost of their calls goes to the stage's account."""
    spending = Spending(store, context.name)
    return VerifierPool(workers=workers, note=context.note, hashes=context.hashes, spending=spending)


def make_verdicts(
    store: Store, wishes: Sequence[Judgement], context: Context, workers: int, label: str = "", judged: bool = False
) -> list[str]:
    """Judge those of ``wishes`` that the store lacks, and store each verdict as it comes, whatever ends the loop.

    Returns the key of the final verdict of each wish. ``judged`` means that earlier answers have verdicts, so that a
    few failures among these, perhaps a single one, do not mean that the verifier is broken.
    """
    store.ingest()
    found = store.present("verdicts", [key for wish in wishes for key in (wish.key, keys.failed_key(wish.key))])
    missing = {wish.key: wish for wish in wishes if wish.key not in found}
    if not missing:
        return [wish.key for wish in wishes]
    stop_check(context.stopping)
    before = {wish.by for wish in wishes if judged or wish.key in found}
    attempts = Attempts(found, before, of_one_problem(wishes))
    writer = _Writer(store, context, attempts, len(wishes) - len(missing), len(wishes), label)
    with pool_of(store, context, workers) as pool:
        items = _to_judge(store, list(missing.values()))

        def stopping() -> bool:  # called about once a second, even while a judge is thinking
            writer.tick()
            return context.stopping()

        try:
            for key, verdict in pool.verify_many(items, stopping):
                check_same(missing[key], verdict)
                writer.add(missing[key], verdict)
                if writer.tick() and context.stopping():
                    break
        finally:
            writer.flush()
            store.ingest()
    stop_check(context.stopping)
    writer.attempts.check(context.name)
    return [writer.stands.get(wish.key, wish.key) for wish in wishes]


def _to_judge(store: Store, wishes: Sequence[Judgement]) -> Iterator[tuple[str, Spec, Problem, Response]]:
    """The wishes with their problems and responses, read in portions."""
    for some in batched(wishes, PORTION):
        responses = responses_of(store, some)
        yield from ((wish.key, wish.verifier, wish.problem, responses[wish.trace_key]) for wish in some)


def kept_under(wish: Judgement, verdict: Verdict, found: Container[str]) -> str:
    """The key of a verdict's row. A first failure that may pass gets a separate key. ``found`` are the keys of the
    verdicts that existed before."""
    failed = keys.failed_key(wish.key)
    return failed if verdict.failure and verdict.failure.may_pass and failed not in found else wish.key


def of_one_problem(judgements: Iterable[Judgement]) -> set[By]:
    """The verifiers that judge a single problem."""
    problems: defaultdict[By, set[str]] = defaultdict(set)
    for wish in judgements:
        problems[wish.by].add(wish.problem_key)
    return {by for by, those in problems.items() if len(those) == 1}


class Attempts:
    """Decides the keys of verdicts as they arrive (`kept_under`), and which of them have to wait.

    An exception is final unless the verifier fails on every answer, because it is broken or lacks something that can be
    fixed. So exceptions wait until the verifier has judged an answer, or until there are no more answers. Each verifier
    is tracked by itself, since problems may name several. ``judged`` are those that have judged an answer before.
    ``alone`` are those that judge only one problem of the stage. If others judge theirs, that problem may be at fault
    (a bad reference), so an exception counts as a failure that may pass, and does not end the stage.
    """

    def __init__(self, found: Container[str], judged: Iterable[By], alone: Container[By]) -> None:
        self._found, self._judged, self._alone = found, set(judged), alone
        self._waiting: defaultdict[By, list[tuple[Judgement, Verdict]]] = defaultdict(list)
        self._first: dict[By, Verdict] = {}
        self._failed: Counter[By] = Counter()

    def take(self, wish: Judgement, verdict: Verdict) -> list[tuple[str, Judgement, Verdict]]:
        """Take in a verdict. Returns what to store now, as (key, wish, verdict)."""
        if not verdict.failure:
            self._judged.add(wish.by)
        self._first.setdefault(wish.by, verdict)
        ready = [(wish, verdict)]
        if wish.by in self._judged:
            ready = [*self._waiting.pop(wish.by, []), *ready]
        elif verdict.failure and not verdict.failure.may_pass:
            self._waiting[wish.by] += ready
            return []
        return [self._counted(kept_under(w, v, self._found), w, v) for w, v in ready]

    def rest(self) -> list[tuple[str, Judgement, Verdict]]:
        """What still waits when no more verdicts come, under keys with which the next run judges it again."""
        ready = [each for waiting in self._waiting.values() for each in waiting]
        self._waiting.clear()
        return [self._counted(self._key_of_rest(wish), wish, verdict) for wish, verdict in ready]

    def _key_of_rest(self, wish: Judgement) -> str:
        failed = keys.failed_key(wish.key)
        return wish.key if self._may_be_the_problem(wish.by) and failed in self._found else failed

    def _may_be_the_problem(self, by: By) -> bool:
        return by in self._alone and bool(self._judged)

    def _counted(self, key: str, wish: Judgement, verdict: Verdict) -> tuple[str, Judgement, Verdict]:
        self._failed[wish.by] += key != wish.key
        return key, wish, verdict

    def check(self, stage: str) -> None:
        """Raise `PipelineError` if a verifier judged nothing but may judge these answers in the next run."""
        broken = {
            by: count
            for by, count in self._failed.items()
            if count and by not in self._judged and not self._may_be_the_problem(by)
        }
        if broken:
            (by, count), *more = broken.items()
            others = f" (so did {', '.join(other for (other, _), _ in more)})" if more else ""
            raise PipelineError(
                f"stage {stage}: verifier {by[0]} failed on every answer ({count:,}) and judged none{others}; "
                f"the first: {self._first[by].reason}. When the cause is mended, the same command judges them again"
            )


def check_same(wish: Judgement, verdict: Verdict) -> None:
    """Refuse a verdict by other code than its key names: somebody edited the verifier's file meanwhile."""
    if verdict.version != wish.version:
        raise PipelineError(
            f"verifier {verdict.verifier}: was changed while it judged ({wish.version} -> {verdict.version}); "
            "run the same command again"
        )


class _Writer:
    """Collects verdicts, and makes them durable and shown often enough that a crash costs half a second."""

    def __init__(self, store: Store, context: Context, attempts: Attempts, done: int, total: int, label: str) -> None:
        self._context, self._done, self._total = context, done, total
        self.stands: dict[str, str] = {}
        """The key under which each verdict is stored, by the key of its wish."""
        self._figures: dict[str, Any] = {"model": label} if label else {}
        self._tally: Counter[str] = Counter()
        self._spent: Counter[str] = Counter()
        self._appender = Appender(store, ("verdicts",))
        self._shown = time.monotonic()
        self.attempts = attempts

    def add(self, wish: Judgement, verdict: Verdict) -> None:
        self._keep(self.attempts.take(wish, verdict))
        self._tally.update([verdict.outcome, *([verdict.failure] if verdict.failure else [])])
        self._spent.update(spent_in(verdict.evidence))
        self._done += 1

    def _keep(self, ready: Iterable[tuple[str, Judgement, Verdict]]) -> None:
        for key, wish, verdict in ready:
            self.stands[wish.key] = key
            self._appender.add("verdicts", verdict_row(key, wish.trace_key, wish.problem_key, verdict, wish.settled))

    def tick(self) -> bool:
        """Flush and show the progress if it is time to. Returns whether it was shown."""
        self._appender.tick()
        if time.monotonic() - self._shown <= SHOWN_SECONDS:
            return False
        self._show()
        return True

    def flush(self) -> None:
        self._keep(self.attempts.rest())
        self._appender.flush()
        self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._context.progress(
            self._done, self._total, **self._figures, **shares(self._tally), **judge_figures(self._spent)
        )


def spent_in(evidence: Mapping[str, Any]) -> Counter[str]:
    """What judges spent on a verdict, including its parts: ``calls``, ``prompt_tokens``, ``tokens``, ``cost``."""
    spent = evidence.get("spent")
    total: Counter[str] = Counter(spent if isinstance(spent, dict) else {})
    for part in evidence.get("parts", ()):
        total.update(spent_in(part.get("evidence", {})))
    return total


def judge_figures(spent: Mapping[str, float]) -> dict[str, float]:
    """The figures of judges for the display; empty if no judge was called."""
    if not spent.get("calls"):
        return {}
    figures = {f"judge_{name}": spent[name] for name in ("calls", "prompt_tokens", "tokens")}
    return figures | ({"cost": round(spent["cost"], 4)} if spent.get("cost") else {})


def shares(tally: Mapping[str, int]) -> dict[str, float]:
    """The share of each outcome, and of each kind of failure that occurred."""
    total = max(sum(tally.get(outcome, 0) for outcome in Outcome), 1)
    return {str(name): round(tally.get(name, 0) / total, 4) for name in dict.fromkeys([*Outcome, *tally])}


def failed_once(verdict_keys: Sequence[str]) -> dict[str, int]:
    """The figure of a manifest that `judged_again` reads: the number of verdicts that may yet change."""
    count = sum(key.endswith(keys.failed_key("")) for key in verdict_keys)
    return {"failed_once": count} if count else {}


def judged_again(manifest: Manifest) -> str | None:
    """Why a stage with a complete record runs again (`pipeline.stage.Stage.again`), or None."""
    count = manifest.figures.get("failed_once")
    return f"{count} verdict(s) failed, by a timeout or a crash: judged once more" if count else None


def responses_of(store: Store, wishes: Sequence[Judgement]) -> dict[str, Response]:
    """The responses to judge, by trace key. The thinking is long, and is read only if a verifier needs it."""
    specs = {canonical(wish.verifier): wish.verifier for wish in wishes}
    thinking = "thinking" if any(reads_thinking(verifiers.build(spec)) for spec in specs.values()) else "''"
    rows = store.among(
        "trace_key",
        sorted({wish.trace_key for wish in wishes}),
        f"SELECT trace_key, {thinking} AS thinking, answer, closed FROM traces SEMI JOIN wanted USING (trace_key)",
    )
    return {row["trace_key"]: Response(row["thinking"], row["answer"], row["closed"]) for row in rows}


def problems_of(store: Store, problem_keys: Sequence[str]) -> dict[str, Problem]:
    """The problems with these keys."""
    rows = store.among("problem_key", problem_keys, "SELECT * FROM problems SEMI JOIN wanted USING (problem_key)")
    return {row["problem_key"]: problem_of(row) for row in rows}


def scores(store: Store, verdict_keys: Sequence[str], answers: bool = False) -> list[Row]:
    """Each trace with its verdict, without the long texts, for estimators and selection. ``answers`` adds the
    answers."""
    return store.among(
        "verdict_key",
        verdict_keys,
        "SELECT v.verdict_key, v.outcome, v.score, v.problem_key, t.trace_key, t.prompt_key, t.sample_index, "
        "t.finish, t.closed, t.thinking_tokens, t.answer_tokens, t.thinking_tokens + t.answer_tokens AS tokens, "
        f"p.problem_id, p.source, p.difficulty{', t.answer' if answers else ''} "
        "FROM verdicts v SEMI JOIN wanted USING (verdict_key) "
        "JOIN traces t USING (trace_key) JOIN problems p USING (problem_key)",
    )
