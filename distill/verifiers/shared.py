"""Judge one answer with one call, in a pool that this process keeps."""

from __future__ import annotations

import os
import threading

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers.compose import Spec
from distill.verifiers.pool import VerifierPool

_lock = threading.Lock()
_pool: VerifierPool | None = None


def check(verifier: Spec, reference: Problem | str, response: Response | str) -> Verdict:
    """The verdict of ``verifier`` (a name or any spec) on one response, which may contain think tags.

    ``reference`` is the right answer, or a whole problem. No verifier can hang or crash the caller: whatever is not
    decided at once is judged by a worker process, which is started on first use, kept, and dies with this one. For many
    answers, use your own `VerifierPool`.
    """
    return _shared().verify(verifier, reference, response)


def _shared() -> VerifierPool:
    global _pool
    with _lock:
        if _pool is None:
            _pool = VerifierPool(workers=1)
        return _pool


def _forget() -> None:
    """Drop the pool in a forked child: its thread stayed with the parent."""
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)
