"""Run one verifier on one answer and sign the verdict. Here alone a verifier's exceptions are caught.

`judge` runs it to the end in this process; `judge_quickly` runs just its `quick` part, the one that is
linear in the text and safe anywhere, and says None where that cannot tell. The pool is built on both.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from distill.thinking import Response, split_thinking
from distill.types import Problem, Verdict
from distill.verifiers.base import Verifier
from pipeline.errors import PipelineError

OUT_OF_MEMORY = "the verifier ran out of memory"


def judge(verifier: Verifier, problem: Problem, trace: Response | str) -> Verdict:
    """The verdict, with the verifier's name and version and the seconds it took.

    ``trace`` is a `distill.types.Trace`, its `Response`, or the raw text of one, think tags and all.

    A verifier that raises gives `unverifiable`, with the exception as the reason; but a `PipelineError`
    (no sandbox, say) is for the user and passes through.
    """
    verdict = _signed(verifier, verifier.verify, problem, trace)
    assert verdict is not None
    return verdict


def judge_quickly(verifier: Verifier, problem: Problem, trace: Response | str) -> Verdict | None:
    quick = getattr(verifier, "quick", None)
    return None if quick is None else _signed(verifier, quick, problem, trace)


def reads_thinking(verifier: Verifier) -> bool:
    return getattr(verifier, "reads_thinking", False)


def shown(verifier: Verifier, trace: Response | str) -> Response:
    """What a verifier is given to see: the thinking just where it asks for it."""
    parts = split_thinking(trace) if isinstance(trace, str) else trace
    return Response(parts.thinking if reads_thinking(verifier) else "", parts.answer, parts.closed)


def prepare(verifier: Verifier) -> None:
    """Let a verifier import what it needs, where it has something to import."""
    getattr(verifier, "prepare", lambda: None)()


def _signed(
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
        verdict = Verdict.unverifiable(f"the verifier failed: {type(error).__name__}: {str(error)[:200]}")
    if verdict is None:
        return None
    seconds = time.perf_counter() - started
    evidence = {"judged": _judged(verifier, seen), **verdict.evidence}
    # Not dataclasses.replace, which takes a tenth of an integer's whole verdict.
    return Verdict(verdict.outcome, verdict.score, verdict.reason, evidence, verifier.name, verifier.version, seconds)


def _judged(verifier: Verifier, seen: Response) -> str:
    if reads_thinking(verifier):
        return "thinking and answer"
    return "the text after thinking" if seen.closed else "nothing: the thinking was never closed"
