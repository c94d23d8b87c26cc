"""Verifiers: was the question answered? Found by name, composed as data, run in killable processes.

    verifier = build("math")                                   # by name
    verifier = build({"format": {"boxed": True}})              # by name, with settings
    verifier = build({"all": ["math", "format"]})              # composed (distill.verifiers.compose)
    verdict = judge(verifier, problem, trace)                  # here and now
    with VerifierPool(workers=2) as pool: ...                  # distill.verifiers.pool: deadlines, kills

Importable without torch. A verifier is one file here and one line in `distill.catalog`; what it must
do is `distill.verifiers.base`.
"""

from __future__ import annotations

from distill.verifiers.base import Verifier
from distill.verifiers.compose import build, get, settled
from distill.verifiers.pool import VerifierPool
from distill.verifiers.run import judge

__all__ = ["Verifier", "VerifierPool", "build", "get", "judge", "settled"]
