"""Run one verifier on one answer and sign the verdict. Here alone a verifier's exceptions are caught.

`judge` runs it to the end in this process; `judge_quickly` runs just its `quick` part, the one that is
linear in the text and safe anywhere, and says None where that cannot tell. The pool is built on both.

A signed verdict's evidence is plain data whatever the verifier put there, so that it can be written as
JSON and sent between processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from distill.thinking import Response, split_thinking
from distill.types import Failure, Problem, Verdict
from distill.verifiers.base import Verifier
from pipeline.errors import PipelineError

LARGEST_BITS = 10_000
"""Of an integer in the evidence: Python refuses to write those of more than 4,300 digits."""


def judge(verifier: Verifier, problem: Problem | str, trace: Response | str) -> Verdict:
    """The verdict, with the verifier's name and version and the seconds it took.

    ``problem`` may be the reference answer alone. ``trace`` is a `distill.types.Trace`, its `Response`, or
    the raw text of one, think tags and all.

    A verifier that raises gives `unverifiable`, with the exception as the reason; but a `PipelineError`
    (no sandbox, say) is for the user and passes through.
    """
    verdict = _signed(verifier, verifier.verify, posed(problem), trace)
    assert verdict is not None
    return verdict


def judge_quickly(verifier: Verifier, problem: Problem | str, trace: Response | str) -> Verdict | None:
    quick = getattr(verifier, "quick", None)
    return None if quick is None else _signed(verifier, quick, posed(problem), trace)


def posed(problem: Problem | str) -> Problem:
    """A problem of which just the reference answer is known, where it is given as a text."""
    return Problem("", "", problem, "", "") if isinstance(problem, str) else problem


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
        if verdict is None:
            return None
        if not isinstance(verdict, Verdict):
            raise TypeError(f"it returned {type(verdict).__name__}, not a Verdict")
        evidence = plain(verdict.evidence)
    except PipelineError:
        raise
    except MemoryError:
        verdict = Verdict.failed(Failure.MEMORY, "the verifier ran out of memory")
        evidence = verdict.evidence
    except Exception as error:
        what = " ".join(str(error)[:200].split())
        verdict = Verdict.failed(Failure.ERROR, f"the verifier failed: {type(error).__name__}: {what}")
        evidence = verdict.evidence
    seconds = time.perf_counter() - started
    evidence = {"judged": _judged(verifier, seen), **evidence}
    return replace(verdict, evidence=evidence, verifier=verifier.name, version=verifier.version, seconds=seconds)


def plain(data: Any) -> Any:
    """``data`` as JSON can hold it: what is neither text, number, list nor mapping becomes text."""
    if data is None or isinstance(data, str | bool):
        return data
    if isinstance(data, int):
        return data if data.bit_length() <= LARGEST_BITS else f"an integer of {data.bit_length()} bits"
    if isinstance(data, float):
        return data if math.isfinite(data) else str(data)
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    return str(data)


def _judged(verifier: Verifier, seen: Response) -> str:
    if reads_thinking(verifier):
        return "thinking and answer"
    return "the text after thinking" if seen.closed else "nothing: the thinking was never closed"
