"""Judge items in two passes: first rules, in the pool's workers, then a judge for what the rules leave open.

Some verifiers must be opened and judge many answers at a time (`distill.verifiers.base.Session`), such as a model
behind an engine, which costs money or minutes. A composition may combine them with rules. The rules run first, and an
opened verifier is asked only about answers that they did not settle: if `math` says incorrect, ``{all: [math, judge]}``
costs no tokens.

To bound memory, open items are held in windows of `WINDOW`: the rules run for the whole window, then each opened
verifier judges the items that still need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers.base import Key, Session, Stopping, Verifier
from distill.verifiers.compose import Composed, Spec
from distill.verifiers.run import judge_many, judge_quickly, shown, signed

WINDOW = 4096
"""Open items held at a time."""

Path = tuple[int, ...]
Item = tuple[Key, Spec, Problem, Response | str]
InWorkers = Callable[[Iterable[Any]], Iterator[tuple[Any, Verdict]]]


@dataclass(eq=False)
class _Open(Generic[Key]):
    """An item that may need an opened verifier. ``known`` holds the verdicts so far, by path in the composition."""

    key: Key
    spec: Spec
    verifier: Verifier
    problem: Problem
    trace: Response | str
    known: dict[Path, Verdict] = field(default_factory=dict)

    def settled(self) -> Verdict | None:
        """The verdict of the whole composition; None while it depends on a missing part."""
        verdict = self._part(self.verifier, ())
        if verdict is None or () in self.known:
            return verdict
        seconds = sum(part.seconds for part in self.known.values())
        return signed(self.verifier, shown(self.verifier, self.trace), verdict, seconds)

    def _part(self, verifier: Verifier, path: Path) -> Verdict | None:
        if path in self.known or not isinstance(verifier, Composed):
            return self.known.get(path)
        verdict = verifier.combined([self._part(part, (*path, n)) for n, part in enumerate(verifier.parts)])
        return verdict and replace(verdict, verifier=verifier.name, version=verifier.version)

    def next_part(self) -> tuple[Path, Spec, Verifier]:
        """The first opened verifier that the verdict still depends on."""
        spec, verifier = self.spec, self.verifier
        path: Path = ()
        while isinstance(verifier, Composed):
            parts = zip(verifier.parts, verifier.weights, strict=True)
            n = next(n for n, (part, weight) in enumerate(parts) if weight and not self._part(part, (*path, n)))
            spec, verifier, path = verifier.specs[n], verifier.parts[n], (*path, n)
        return path, spec, verifier


_Place = tuple[Key, _Open[Key] | None, Path]
"""What a worker's verdict is for: a whole item (no `_Open`), or one part of an open item."""


def is_opened(verifier: Verifier) -> bool:
    return hasattr(verifier, "open")


def holds_opened(verifier: Verifier) -> bool:
    if isinstance(verifier, Composed):
        return any(map(holds_opened, verifier.parts))
    return is_opened(verifier)


def verify_many(
    items: Iterable[Item[Key]],
    built: Callable[[Spec], Verifier],
    opened: Callable[[Spec], Session],
    in_workers: InWorkers,
    stopping: Stopping,
) -> Iterator[tuple[Key, Verdict]]:
    """Yield (key, verdict) for every item. ``built`` and ``opened`` must cache what they return by spec."""
    source, ended = iter(items), False
    while not ended and not stopping():
        window: list[_Open[Key]] = []
        for (key, item, path), verdict in in_workers(_work_for_pool(source, built, window)):
            if item is None:
                yield key, verdict
            else:
                item.known[path] = verdict
        ended = len(window) < WINDOW
        yield from _ask_opened(window, opened, stopping)


def _work_for_pool(
    source: Iterator[Item[Key]], built: Callable[[Spec], Verifier], window: list[_Open[Key]]
) -> Iterator[tuple[_Place[Key], Spec, Problem, Response | str]]:
    """Work for the pool in the next window: whole items, and the rules of open items, which are added to ``window``."""
    while len(window) < WINDOW and (item := next(source, None)) is not None:
        key, spec, problem, trace = item
        verifier = built(spec)
        if not holds_opened(verifier):
            yield (key, None, ()), spec, problem, trace
            continue
        kept = _Open(key, spec, verifier, problem, trace)
        window.append(kept)
        for path, part_spec, part in _separate_parts(spec, verifier):
            if not is_opened(part):
                yield (key, kept, path), part_spec, problem, trace
            elif verdict := judge_quickly(part, problem, trace):
                kept.known[path] = verdict


def _separate_parts(spec: Spec, verifier: Verifier, path: Path = ()) -> Iterator[tuple[Path, Spec, Verifier]]:
    """The parts to judge separately: every opened verifier, and every maximal part without one."""
    if isinstance(verifier, Composed) and holds_opened(verifier):
        for index, (part_spec, part) in enumerate(zip(verifier.specs, verifier.parts, strict=True)):
            yield from _separate_parts(part_spec, part, (*path, index))
    else:
        yield path, spec, verifier


def _ask_opened(
    window: list[_Open[Key]], opened: Callable[[Spec], Session], stopping: Stopping
) -> Iterator[tuple[Key, Verdict]]:
    """Ask the opened verifiers, one after the other, about the items that still depend on them."""
    yield from ((item.key, verdict) for item in window if (verdict := item.settled()))
    left = {n: item for n, item in enumerate(window) if not item.settled()}
    while left and not stopping():
        needs = {n: item.next_part() for n, item in left.items()}
        _, spec, verifier = next(iter(needs.values()))
        group = {n: path for n, (path, other, _) in needs.items() if other == spec}
        questions = [(n, left[n].problem, left[n].trace) for n in group]
        for n, verdict in judge_many(verifier, opened(spec), questions, stopping):
            left[n].known[group.pop(n)] = verdict
            if whole := left[n].settled():
                yield left.pop(n).key, whole
        if group:  # stopped early
            return
