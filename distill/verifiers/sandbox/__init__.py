"""A sandbox for model-written code: no network, no files, no other processes, and limits on everything.

    ran = run(program, payload)        # in the best backend that works here; SandboxError if none does
    survey()                           # the result of each backend's self-test, for `distill doctor`

`run` starts a program of ours in a box (one sandboxed run), gives it a payload and reads what it sends back. The
candidate, which is the model-written code, controls what comes back: it is data for the caller to judge, never a
verdict. Expected answers do not enter the box.

A backend is one small file in `inside/`. `namespaces` and `bubblewrap` build the same walls; `unsafe` builds none and
must be requested by name. `auto` takes the first that passes its self-test (`selftest`), and nothing ever runs with
less. docs/design/005-sandbox.md says what each wall is for.
"""

from __future__ import annotations

from distill.verifiers.sandbox.launcher import Limits, Ran, Refused, close, run_with, seen
from distill.verifiers.sandbox.pipes import Waiting
from distill.verifiers.sandbox.selftest import AUTO, BACKENDS, SandboxError, choose, survey

__all__ = [
    "AUTO",
    "BACKENDS",
    "Limits",
    "Ran",
    "Refused",
    "SandboxError",
    "Waiting",
    "choose",
    "close",
    "run",
    "seen",
    "survey",
]


def run(
    program: str,
    payload: bytes,
    stdin: bytes = b"",
    limits: Limits | None = None,
    sandbox: str = AUTO,
    wires: tuple[int, ...] = (),
    visible: tuple[str, ...] = (),
    waiting: Waiting | None = None,
) -> Ran:
    """Run ``program`` (our Python source) in a box. It reads ``payload`` from descriptor 3 and writes its results to 4.

    ``wires`` become descriptors 6 and 7, and are closed on this side. ``visible`` are further directories that can be
    read in the box, at the paths that `seen` returns. Runs that depend on each other share a ``waiting``.

    Raises `SandboxError` if no backend works here, `Refused` if this run got no box or lost it.
    """
    backend = choose(sandbox)
    return run_with(backend, program, payload, stdin, limits or Limits(), wires, visible, waiting)
