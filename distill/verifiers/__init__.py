r"""Verifiers decide whether a response answers its problem. They are composed as data and run in killable processes.

    verdict = check("math", reference="42", response=r"... \boxed{42}")   # one answer; cannot hang or crash the caller

    with VerifierPool(workers=2) as pool:                      # many answers: deadlines, kills
        pool.verify(spec, problem, trace)                      # from any thread
        await pool.averify(spec, problem, trace)               # from asyncio
        for key, verdict in pool.verify_many(items): ...       # in order of completion

    verifier = build("math")                                   # by name
    verifier = build({"format": {"boxed": True}})              # by name, with settings
    verifier = build({"all": ["math", "format"]})              # composed (distill.verifiers.compose)
    verdict = judge(verifier, problem, trace)                  # in this process: it may hang or crash

Every function that takes a problem also accepts its reference answer alone. Importing this package does not load torch.
A verifier is one file here and one line in `distill.catalog`. `distill.verifiers.base` defines the protocol, and
docs/verifiers.md shows how to use verifiers on their own.
"""

from __future__ import annotations

from distill.types import Failure, Outcome, Problem, Verdict
from distill.verifiers.base import Verifier
from distill.verifiers.compose import build, get, settled
from distill.verifiers.pool import VerifierPool
from distill.verifiers.run import judge
from distill.verifiers.shared import check
from distill.verifiers.worker import Limits

__all__ = [
    "Failure",
    "Limits",
    "Outcome",
    "Problem",
    "Verdict",
    "Verifier",
    "VerifierPool",
    "build",
    "check",
    "get",
    "judge",
    "settled",
]
