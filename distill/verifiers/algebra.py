"""Ask math-verify whether two LaTeX texts are equal. Only this file uses math-verify.

Calls have no time limit here and may hang or exhaust memory; the pool enforces the limits. The `math` verifier never
accepts an answer because of math-verify alone (`distill.verifiers.math`).
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

INSTALL = "needs algebra: pip install 'distill-reasoning[verify]'"


def equal(reference: str, given: str) -> bool | str:
    """True or False from math-verify, or a string that says why it cannot decide."""
    try:
        import math_verify
    except ImportError:
        return INSTALL
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    wanted = _parsed(reference)
    if not wanted:
        return "the reference cannot be parsed"
    answer = math_verify.parse(f"${given}$", parsing_timeout=None)
    return bool(math_verify.verify(wanted, answer, timeout_seconds=None))


@lru_cache(maxsize=512)
def _parsed(reference: str) -> list[Any]:
    """Parse a reference, once for all answers to it."""
    import math_verify

    return list(math_verify.parse(f"${reference}$", parsing_timeout=None))


def nesting(text: str) -> int:
    """How deeply brackets of any kind are nested. Deeply nested texts must not be given to math-verify."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest
