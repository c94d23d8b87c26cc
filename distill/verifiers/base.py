"""The verifier protocol: a problem and a trace's response in, a verdict out.

A verifier is a pure function of its two arguments: no state, no randomness, no clock. It says
`unverifiable` where it cannot judge (an unparsable reference, say), and may raise: whoever runs it turns
a crash or a timeout into `unverifiable`, never into a wrong answer. `version` goes up whenever a verdict
could change.

Only the text after thinking is judged: ``trace.thinking`` is empty for a verifier, whatever the model
thought, unless its class says ``reads_thinking = True`` (a rule about form, a model that scores steps).
The verdict's evidence tells under ``judged`` what was looked at.

Two more things are optional. ``quick(problem, trace) -> Verdict | None`` is the part that is linear in the
text and safe in any process and thread; the pool asks it in the caller's own and goes to a worker just
where it says None (``quick = verify`` where all of a verifier is like that). ``prepare()`` imports or
tries what is needed, ahead of the first verdict and outside its limits.
"""

from __future__ import annotations

from typing import Protocol

from distill.thinking import Response
from distill.types import Problem, Verdict


class Verifier(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        """Judge ``trace.answer``: numbers, LaTeX or code, as the family asks."""
        ...
