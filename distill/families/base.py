"""What a problem family is: endless problems, their split, and authors who solve them.

A family makes problems as a pure function of (seed, index, split), so a set of them is a range of
indices and needs no file. The split is decided by a hash of the problem's *structure* (the chain,
formula or function underneath), never of its text: a held-out problem shares neither prompt nor
structure with any training problem, whatever the seeds. Judging answers is left to the verifiers,
which share no code with the authors here. `distill.stages` makes problem sets of families, and
`distill.pretraining` writes the corpora of the embedded models with their authors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple, Protocol

from distill import catalog
from distill.randomness import generator
from distill.types import Problem
from pipeline.errors import InputError
from pipeline.fingerprint import FileHashes, content_hash

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "heldout")
HELD_OUT_ONE_IN = 10


class Solution(NamedTuple):
    """What an author writes: the lines of working, and the answer below them."""

    thinking: str
    answer: str


class Family(Protocol):
    name: str

    def generate(self, seed: int, index: int, split: str) -> Problem:
        """Problem number ``index`` of the set named by ``seed`` and ``split``; a pure function."""
        ...

    def solve(self, problem: Problem, slips: float = 0.0, rng: np.random.Generator | None = None) -> Solution:
        """Work a problem of this family out line by line.

        ``slips`` is the chance that a line's result is written down wrong; the lines after it go on
        from the wrong value, as they would on paper. 0 is the careful author, who needs no ``rng``.
        """
        ...

    def next_line(self, problem: Problem, lines: Sequence[str]) -> str | None:
        """What a careful author writes below these lines, right or wrong as they are; None where the working is
        complete. ValueError where they leave nothing to go on from."""
        ...

    def final(self, problem: Problem, lines: Sequence[str]) -> str | None:
        """The answer below these lines; None where lines are missing. Errors as in `next_line`."""
        ...

    def guess(self, rng: np.random.Generator) -> str:
        """An answer of the right form by somebody who did not work it out."""
        ...


Slip = Callable[[str, "np.random.Generator"], str]
"""A line's result, written down wrong."""


def worked(
    family: Family, problem: Problem, slips: float, rng: np.random.Generator | None, slip: Slip
) -> Solution:  # fmt: skip
    """`Family.solve` by the family's own next lines."""
    lines: list[str] = []
    while (line := family.next_line(problem, lines)) is not None:
        if rng is not None and rng.random() < slips:
            working, equals, result = line.rpartition(" = ")
            line = working + equals + slip(result, rng)
        lines.append(line)
    answer = family.final(problem, lines)
    assert answer is not None
    return Solution("\n".join(lines), answer)


def result_of(line: str) -> int:
    """The number that a line of working comes to."""
    return int(line.rpartition(" = ")[2])


def labels(family: Family, problem: Problem, lines: Sequence[str], answer: str) -> list[bool | None]:
    """Whether each line follows from those before it, and last whether the answer does: labels local to the line, so
    that one slip spoils one of them. None where a line can be neither right nor wrong, for one before it says nothing.
    """

    def right(given: str, expect: Callable[[Problem, Sequence[str]], str | None], before: Sequence[str]) -> bool | None:
        try:
            return " ".join(given.split()) == expect(problem, before)
        except ValueError:
            return None

    found = [right(line, family.next_line, lines[:n]) for n, line in enumerate(lines)]
    return [*found, right(answer, family.final, lines)]


def code_of(families: Sequence[str], hashes: FileHashes) -> str:
    """Content hash of the code that writes the problems of these families."""
    modules = [catalog.names("families")[name].partition(":")[0] for name in families]
    found = [find_spec(module) for module in [*modules, __name__]]
    return content_hash([hashes.of(spec.origin) for spec in found if spec and spec.origin])


def split_of(structure: str) -> str:
    digest = hashlib.blake2b(structure.encode(), digest_size=8).digest()
    return SPLITS[int.from_bytes(digest, "little") % HELD_OUT_ONE_IN == 0]


def draw(candidate: Callable[[np.random.Generator], Problem], name: str, seed: int, index: int, split: str) -> Problem:
    """The first candidate whose structure belongs to ``split`` (one in ten for held-out ones)."""
    if split not in SPLITS:
        raise InputError(f"split {split!r}: a family knows only {' and '.join(map(repr, SPLITS))}")
    rng = generator("family", name, seed, split, index)
    while True:
        problem = candidate(rng)
        if problem.split == split:
            return problem


def problem_of(family: str, prompt: str, reference: str, verifier: str, structure: str, difficulty: int) -> Problem:
    """A problem whose id is a hash of its prompt and whose split is that of its structure."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=6).hexdigest()
    return Problem(
        id=f"{family}/{digest}",
        prompt=prompt,
        reference=reference,
        verifier=verifier,
        source=family,
        split=split_of(structure),
        difficulty=difficulty,
        licence="CC0-1.0",
        structure=structure,
    )
