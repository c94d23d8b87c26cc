"""The verifier protocol: a problem and a trace's response in, a verdict out.

A verifier is a pure function of its two arguments: no state, no randomness, no clock. It returns `unverifiable` if it
cannot judge (because the reference cannot be parsed, say), and it may raise: its caller turns an exception, a crash or
a timeout into `unverifiable`, never into a wrong answer. Raise `version` whenever a verdict could change.

Only the text after the thinking is judged: ``trace.thinking`` is empty for a verifier unless its class sets
``reads_thinking = True`` (for a rule about form, or a model that scores steps). The verdict's evidence records under
``judged`` what was shown.

A verifier may also have:

- ``quick(problem, trace) -> Verdict | None``: the part that is linear in the text and safe in any process and thread.
  The pool calls it in the caller's thread, and uses a worker only if it returns None. Write ``quick = verify`` if all
  of a verifier is like that.
- ``prepare()``: imports or tests what is needed, before the first verdict and outside its limits.
- ``unusable(problem) -> str | None``: the reason why no answer to this problem can be judged (it has no tests, say), if
  the problem alone shows it. It is then reported once, when the problem is read, instead of in a verdict on every
  answer.
- ``open(note) -> Session``: for a verifier that judges many answers at a time, such as a model behind an engine. The
  pool opens it once, in the caller's process, and asks it last, about what the rules leave open
  (`distill.verifiers.asking`). It does not run in a worker, so nothing kills it.
- ``spends = True`` on the class: it is opened with ``open(note, spending)`` and records what it pays for in that
  account (`distill.spending.Spending`, or None).
- ``most``: the most that one verdict of such a verifier can use, ``{"calls": 2, "max_tokens": 2048}``.
- ``settled``: its settings for the verdict's key, without those that change no verdict (a price, a timeout).
- ``settings_model`` on the class: its settings as a pydantic model, for the reference pages.
- ``reads_files = True`` on the class: its constructor takes ``hashes`` (`pipeline.fingerprint.FileHashes`), because its
  version covers the content of files.
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
    """An opened verifier, which holds a loaded model or a connection until it is closed."""

    def judge(
        self, items: Sequence[tuple[Key, Problem, Response]], stopping: Stopping = never
    ) -> Iterator[tuple[Key, Verdict]]:
        """Yield (key, verdict) for each (key, problem, trace) as soon as it is known, in any order.

        Ends once ``stopping`` returns True; items in flight then get no verdict. A `PipelineError` (the endpoint is
        down, or a cap is reached) is for the user and propagates.
        """
        ...

    def close(self) -> None: ...
