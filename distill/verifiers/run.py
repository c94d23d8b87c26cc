"""Run one verifier on one answer and sign the verdict. Here alone a verifier's exceptions are caught.

`judge` runs it to the end in this process; `judge_quickly` runs just its `quick` part, the one that is
linear in the text and safe anywhere, and says None where that cannot tell. `judge_many` asks an opened
verifier. The pool is built on these.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from distill.thinking import Response, split_thinking
from distill.types import Problem, Verdict
from distill.verifiers.base import Key, Session, Stopping, Verifier, never
from pipeline.errors import PipelineError

OUT_OF_MEMORY = "the verifier ran out of memory"


def judge(verifier: Verifier, problem: Problem, trace: Response | str) -> Verdict:
    """The verdict, with the verifier's name and version and the seconds it took.

    ``trace`` is a `distill.types.Trace`, its `Response`, or the raw text of one, think tags and all.

    A verifier that raises gives `unverifiable`, with the exception as the reason; but a `PipelineError`
    (no sandbox, say) is for the user and passes through.
    """
    verdict = _asked(verifier, verifier.verify, problem, trace)
    assert verdict is not None
    return verdict


def judge_quickly(verifier: Verifier, problem: Problem, trace: Response | str) -> Verdict | None:
    quick = getattr(verifier, "quick", None)
    return None if quick is None else _asked(verifier, quick, problem, trace)


def judge_many(
    verifier: Verifier,
    session: Session,
    items: Sequence[tuple[Key, Problem, Response | str]],
    stopping: Stopping = never,
) -> Iterator[tuple[Key, Verdict]]:
    """Signed verdicts of a verifier that judges many at a time, as they come; fewer where it is stopped."""
    seen = {key: shown(verifier, trace) for key, _, trace in items}
    try:
        for key, verdict in session.judge([(key, problem, seen[key]) for key, problem, _ in items], stopping):
            yield key, signed(verifier, seen.pop(key), verdict, verdict.seconds)
    except PipelineError:
        raise
    except Exception as error:
        for key, trace in seen.items():
            yield key, signed(verifier, trace, _failed(error), 0.0)


def reads_thinking(verifier: Verifier) -> bool:
    return getattr(verifier, "reads_thinking", False)


def shown(verifier: Verifier, trace: Response | str) -> Response:
    """What a verifier is given to see: the thinking just where it asks for it."""
    parts = split_thinking(trace) if isinstance(trace, str) else trace
    return Response(parts.thinking if reads_thinking(verifier) else "", parts.answer, parts.closed)


def prepare(verifier: Verifier) -> None:
    """Let a verifier import what it needs, where it has something to import."""
    getattr(verifier, "prepare", lambda: None)()


def _asked(
    verifier: Verifier,
    ask: Callable[[Problem, Response], Verdict | None],
    problem: Problem,
    trace: Response | str,
) -> Verdict | None:
    started = time.perf_counter()
    seen = shown(verifier, trace)
    try:
        verdict = ask(problem, seen)
    except PipelineError:
        raise
    except MemoryError:
        verdict = Verdict.unverifiable(OUT_OF_MEMORY)
    except Exception as error:
        verdict = _failed(error)
    return None if verdict is None else signed(verifier, seen, verdict, time.perf_counter() - started)


def _failed(error: Exception) -> Verdict:
    return Verdict.unverifiable(f"the verifier failed: {type(error).__name__}: {str(error)[:200]}")


def signed(verifier: Verifier, seen: Response, verdict: Verdict, seconds: float) -> Verdict:
    """The verdict with the verifier's name, its version, and what it was shown."""
    evidence = {"judged": _judged(verifier, seen), **verdict.evidence}
    # Not dataclasses.replace, which takes a tenth of an integer's whole verdict.
    return Verdict(verdict.outcome, verdict.score, verdict.reason, evidence, verifier.name, verifier.version, seconds)


def _judged(verifier: Verifier, seen: Response) -> str:
    if reads_thinking(verifier):
        return "thinking and answer"
    return "the text after thinking" if seen.closed else "nothing: the thinking was never closed"
