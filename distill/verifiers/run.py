"""Run one verifier on one answer and sign the verdict. Here alone a verifier's exceptions are caught.

`judge` runs it to the end in this process; `judge_quickly` runs just its `quick` part, the one that is
linear in the text and safe anywhere, and says None where that cannot tell. The pool is built on both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from distill.types import Problem, Verdict
from distill.verifiers.base import Verifier
from pipeline.errors import PipelineError

OUT_OF_MEMORY = "the verifier ran out of memory"


def judge(verifier: Verifier, problem: Problem, answer: str) -> Verdict:
    """The verdict, with the verifier's name and version and the seconds it took.

    A verifier that raises gives `unverifiable`, with the exception as the reason; but a `PipelineError`
    (no sandbox, say) is for the user and passes through.
    """
    verdict = _signed(verifier, verifier.verify, problem, answer)
    assert verdict is not None
    return verdict


def judge_quickly(verifier: Verifier, problem: Problem, answer: str) -> Verdict | None:
    quick = getattr(verifier, "quick", None)
    return None if quick is None else _signed(verifier, quick, problem, answer)


def prepare(verifier: Verifier) -> None:
    """Let a verifier import what it needs, where it has something to import."""
    getattr(verifier, "prepare", lambda: None)()


def _signed(
    verifier: Verifier, ask: Callable[[Problem, str], Verdict | None], problem: Problem, answer: str
) -> Verdict | None:
    started = time.perf_counter()
    try:
        verdict = ask(problem, answer)
    except PipelineError:
        raise
    except MemoryError:
        verdict = Verdict.unverifiable(OUT_OF_MEMORY)
    except Exception as error:
        verdict = Verdict.unverifiable(f"the verifier failed: {type(error).__name__}: {str(error)[:200]}")
    if verdict is None:
        return None
    seconds = time.perf_counter() - started
    return replace(verdict, verifier=verifier.name, version=verifier.version, seconds=seconds)
