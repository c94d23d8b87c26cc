"""The verifier protocol: a problem and the visible answer in, a verdict out.

A verifier is a pure function of its two arguments: no state, no randomness, no clock. Only the text
after thinking is handed to it. It says `unverifiable` where it cannot judge (an unparsable
reference, say), and may raise: whoever runs it turns a crash or a timeout into `unverifiable`,
never into a wrong answer. `version` goes up whenever a verdict could change.

Two methods are optional. ``quick(problem, answer) -> Verdict | None`` is the part that is linear in the
text and safe in any process and thread; the pool asks it in the caller's own and goes to a worker just
where it says None (``quick = verify`` where all of a verifier is like that). ``prepare()`` imports or
tries what is needed, ahead of the first verdict and outside its limits.
"""

from __future__ import annotations

from typing import Protocol

from distill.types import Problem, Verdict


class Verifier(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """Judge ``answer``, the text after thinking. Numbers, LaTeX or code as the family asks."""
        ...
