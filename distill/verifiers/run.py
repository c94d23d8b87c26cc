"""Run one verifier on one answer and sign the verdict. The exceptions of verifiers are caught only here.

`judge` runs a verifier completely in this process. `judge_quickly` runs only its `quick` part, which is linear in the
text and safe anywhere, and returns None if that cannot decide. `judge_many` asks an opened verifier. The pool is built
on these.

The evidence of a signed verdict is plain data, whatever the verifier put there, so that it can be written as JSON and
sent between processes.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from distill.thinking import Response, split_thinking
from distill.types import Failure, Outcome, Problem, Verdict
from distill.verifiers.base import Key, Session, Stopping, Verifier, never
from pipeline.errors import InputError, PipelineError

LARGEST_BITS = 10_000
"""Maximum size of an integer in the evidence: Python refuses to format one of more than 4,300 digits."""
DEEPEST = 50
OUTCOMES = tuple(Outcome)


def judge(verifier: Verifier, problem: Problem | str, trace: Response | str) -> Verdict:
    """The verdict, with the verifier's name and version and the seconds it took.

    ``problem`` may be the reference answer alone. ``trace`` is a `distill.types.Trace`, its `Response`, or its raw text
    with think tags.

    If the verifier raises, the verdict is `unverifiable`, with the exception as the reason. Only a `PipelineError` (no
    sandbox, say) is for the user and propagates.
    """
    verdict = _run_and_sign(verifier, partial(_full_verdict, verifier), posed(problem), trace)
    assert verdict is not None
    return verdict


def _full_verdict(verifier: Verifier, problem: Problem, trace: Response) -> Verdict:
    """The result of `verify`, which must be a verdict (`quick` may return None)."""
    verdict = verifier.verify(problem, trace)
    if not isinstance(verdict, Verdict):
        return Verdict.failed(
            Failure.ERROR, f"the verifier failed: it returned {type(verdict).__name__}, not a Verdict"
        )
    return verdict


def judge_quickly(verifier: Verifier, problem: Problem | str, trace: Response | str) -> Verdict | None:
    quick = getattr(verifier, "quick", None)
    return None if quick is None else _run_and_sign(verifier, quick, posed(problem), trace)


def posed(problem: Problem | str) -> Problem:
    """The problem, or a reference answer alone as a problem."""
    if isinstance(problem, str):
        return Problem("", "", problem, "", "")
    if not isinstance(getattr(problem, "reference", None), str):
        raise InputError(f"a problem must be a Problem or its reference answer as text, not {str(problem)[:40]!r}")
    return problem


def judge_many(
    verifier: Verifier,
    session: Session,
    items: Sequence[tuple[Key, Problem, Response | str]],
    stopping: Stopping = never,
) -> Iterator[tuple[Key, Verdict]]:
    """Yield the signed verdicts of an opened verifier as they arrive; fewer if it is stopped."""
    seen = {key: shown(verifier, trace) for key, _, trace in items}
    try:
        for key, verdict in session.judge([(key, problem, seen[key]) for key, problem, _ in items], stopping):
            yield key, signed(verifier, seen.pop(key), verdict, verdict.seconds)
    except PipelineError:
        raise
    except Exception as error:
        for key, trace in seen.items():
            yield key, signed(verifier, trace, _error_verdict(error), 0.0)


def reads_thinking(verifier: Verifier) -> bool:
    return getattr(verifier, "reads_thinking", False)


def shown(verifier: Verifier, trace: Response | str) -> Response:
    """What a verifier gets to see of a response: the thinking only if it asks for it."""
    parts = split_thinking(trace) if isinstance(trace, str) else trace
    if not isinstance(getattr(parts, "answer", None), str):
        raise InputError(f"a response must be text, a Response or a Trace, not {str(trace)[:40]!r}")
    return Response(parts.thinking if reads_thinking(verifier) else "", parts.answer, parts.closed)


def unusable(verifier: Verifier, problem: Problem) -> str | None:
    """Why the verifier cannot judge any answer to the problem; None if it names no reason."""
    found: str | None = getattr(verifier, "unusable", lambda problem: None)(problem)
    return found


def prepare(verifier: Verifier) -> None:
    """Call the verifier's `prepare`, if it has one."""
    getattr(verifier, "prepare", lambda: None)()


def _run_and_sign(
    verifier: Verifier,
    ask: Callable[[Problem, Response], Verdict | None],
    problem: Problem,
    trace: Response | str,
) -> Verdict | None:
    started = time.perf_counter()
    seen = shown(verifier, trace)
    try:
        verdict = ask(problem, seen)
        if verdict is not None and not isinstance(verdict, Verdict):
            raise TypeError(f"it returned {type(verdict).__name__}, not a Verdict")
    except PipelineError:
        raise
    except MemoryError:
        verdict = Verdict.failed(Failure.MEMORY, "the verifier ran out of memory")
    except (Exception, SystemExit) as error:
        verdict = _error_verdict(error)
    return None if verdict is None else signed(verifier, seen, verdict, time.perf_counter() - started)


def _error_verdict(error: BaseException) -> Verdict:
    what = " ".join(str(error)[:200].split())
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return Verdict.failed(Failure.ERROR, f"the verifier failed: {type(error).__name__}: {what}{where}")


def signed(verifier: Verifier, seen: Response, verdict: Verdict, seconds: float) -> Verdict:
    """The verdict with the verifier's name and version, the time it took, and what the verifier was shown."""
    if wrong := _invalid(verdict):
        verdict = Verdict.failed(Failure.ERROR, f"the verifier failed: {wrong}")
    evidence = {"judged": _judged(verifier, seen), **plain(verdict.evidence)}
    outcome = Outcome(verdict.outcome)
    score = None if verdict.score is None or outcome is Outcome.UNVERIFIABLE else float(verdict.score)
    # Not dataclasses.replace, which would take a tenth of the whole time of a verdict on an integer.
    return Verdict(outcome, score, verdict.reason, evidence, verifier.name, verifier.version, seconds)


def _invalid(verdict: Verdict) -> str | None:
    """What is invalid about a verdict, or None. A score of NaN would spoil the rewards of a whole GRPO group."""
    if verdict.outcome not in OUTCOMES:
        return f"its outcome is {str(verdict.outcome)[:40]!r}, none of {', '.join(OUTCOMES)}"
    score: Any = verdict.score
    if verdict.outcome == Outcome.UNVERIFIABLE or (isinstance(score, Real) and 0 <= float(score) <= 1):
        return None
    return f"its score is {str(score)[:40]}, no number from 0 to 1"


def plain(data: Any, depth: int = 0) -> Any:
    """``data`` as JSON can hold it: anything but texts, numbers, lists and mappings becomes text."""
    if data is None or isinstance(data, str | bool):
        return data
    if isinstance(data, int):
        return data if data.bit_length() <= LARGEST_BITS else f"an integer of {data.bit_length()} bits"
    if isinstance(data, float):
        return data if math.isfinite(data) else str(data)
    if depth > DEEPEST:
        return "nested too deeply"
    if isinstance(data, Mapping):
        return {str(key): plain(value, depth + 1) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value, depth + 1) for value in data]
    return str(data)


def _judged(verifier: Verifier, seen: Response) -> str:
    if reads_thinking(verifier):
        return "thinking and answer"
    return "the text after thinking" if seen.closed else "nothing: the thinking was never closed"
