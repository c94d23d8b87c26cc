"""A box to run model-written code in: no network, no files, no other processes, and limits on everything.

    ran = run(program, payload)        # in the best backend that holds here; SandboxError where none does
    survey()                           # what each backend's self-test says, for `distill doctor`

`run` starts a program of ours in the box, gives it a payload and reads what it sends back. What comes back
was in the hands of the candidate: it is data to be judged by the caller, never a verdict. Expected answers
do not enter the box.

A backend is one small file in `inside/`: `namespaces` and `bubblewrap` hold the same walls, `unsafe` holds
none and must be named. `auto` takes the first that passes its self-test (`selftest`), and nothing is ever run
with less. What each wall is for: docs/design/005-sandbox.md.
"""

from __future__ import annotations

from distill.verifiers.sandbox.launcher import Limits, Ran, close, run_with, seen
from distill.verifiers.sandbox.selftest import AUTO, BACKENDS, SandboxError, choose, survey

__all__ = ["AUTO", "BACKENDS", "Limits", "Ran", "SandboxError", "choose", "close", "run", "seen", "survey"]


def run(
    program: str,
    payload: bytes,
    stdin: bytes = b"",
    limits: Limits | None = None,
    sandbox: str = AUTO,
    wires: tuple[int, ...] = (),
    visible: tuple[str, ...] = (),
) -> Ran:
    """Run ``program`` (Python source, ours) in a box with ``payload`` on descriptor 3; its results are what it
    writes to 4. ``wires`` become descriptors 6 and 7, and are closed on this side; ``visible`` are further
    directories to be read in there, at the places that `seen` tells."""
    backend = choose(sandbox)
    return run_with(backend, program, payload, stdin, limits or Limits(), wires, visible)
