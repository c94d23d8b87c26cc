"""math-verify, asked for one opinion: are two LaTeX texts equal? The only file that knows of it.

It has no time limit of its own here and may hang or exhaust memory: the pool has the limits. Its opinion is
never believed alone (`distill.verifiers.math`).
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

INSTALL = "needs algebra: pip install 'distill[verify]'"


def equal(reference: str, given: str) -> bool | str:
    """What math-verify says, or why it cannot say."""
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
    """A reference is parsed once for all of its answers."""
    import math_verify

    return list(math_verify.parse(f"${reference}$", parsing_timeout=None))


def nesting(text: str) -> int:
    """How deep brackets of any kind lie in each other: what math-verify must not be given too much of."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest
