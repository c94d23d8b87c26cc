"""The verifier protocol: a problem and a trace's response in, a verdict out.

A verifier is a pure function of its two arguments: no state, no randomness, no clock. It says
`unverifiable` where it cannot judge (an unparsable reference, say), and may raise: whoever runs it turns
a crash or a timeout into `unverifiable`, never into a wrong answer. `version` goes up whenever a verdict
could change.

Only the text after thinking is judged: ``trace.thinking`` is empty for a verifier, whatever the model
thought, unless its class says ``reads_thinking = True`` (a rule about form, a model that scores steps).
The verdict's evidence tells under ``judged`` what was looked at.

More is optional:

- ``quick(problem, trace) -> Verdict | None`` is the part that is linear in the text and safe in any process
  and thread; the pool asks it in the caller's own and goes to a worker just where it says None
  (``quick = verify`` where all of a verifier is like that).
- ``prepare()`` imports or tries what is needed, ahead of the first verdict and outside its limits.
- ``unusable(problem) -> str | None`` says why it could judge no answer to a problem (its tests are none), where the
  problem alone tells: so it is told where the problem is read, and not by a verdict on every answer.
- ``open(note) -> Session`` is for what judges many at a time by itself: a model behind an engine. The pool
  opens it once, in the caller's process, and asks it last, where the rules leave something open
  (`distill.verifiers.asking`). It is in no worker, so nobody kills it.
- ``spends = True`` on the class: it is opened with ``open(note, spending)``, for the account on which it keeps what it
  pays for (`distill.spending.Spending`, or None).
- ``most`` says what one verdict of such a verifier can take: ``{"calls": 2, "max_tokens": 2048}``.
- ``settled`` are its settings without those that change no verdict (a price, a timeout), for the key.
- ``settings_model`` on the class are its settings as a pydantic model, for the reference pages.
- ``reads_files = True`` on the class: its constructor takes ``hashes`` (`pipeline.fingerprint.FileHashes`),
  because its version covers the content of files.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Protocol, TypeVar

from distill.thinking import Response
from distill.types import Problem, Verdict

Key = TypeVar("Key", bound=Hashable)
Stopping = Callable[[], bool]
Note = Callable[[str], None]


def never() -> bool:
    return False


def silent(text: str) -> None:
    pass


class Verifier(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        """Judge ``trace.answer``: numbers, LaTeX or code, as the family asks."""
        ...


class Session(Protocol):
    """An opened verifier: it holds a loaded model or a connection, until it is closed."""

    def judge(
        self, items: Sequence[tuple[Key, Problem, Response]], stopping: Stopping = never
    ) -> Iterator[tuple[Key, Verdict]]:
        """Yield a verdict for each (key, problem, trace) the moment it is there, in any order.

        Once ``stopping`` is true it ends, and what was in flight gets no verdict. A `PipelineError` (an
        endpoint that is down, a cap that is reached) is for the user and ends everything.
        """
        ...

    def close(self) -> None: ...
