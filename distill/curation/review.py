"""Reviews a set of problems: exact duplicates first, then overlap with evaluation sets, then near duplicates.

Near duplicates are those of an evaluation item, or of another problem that is left. The order makes sure that a
contaminated problem never represents a clean one that resembles it. The problems are read several times, in portions,
sorted by content (by their keys); only a few hundred bytes of each are kept in between. The caller reads the problems
and stores the evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from distill.curation.contamination import Evaluations, Hit, Item
from distill.curation.duplicates import near_duplicates
from distill.curation.frame import Cutter, Frames
from distill.curation.words import text_hash

EXACT, NEAR, EVALUATION = "exact", "near", "evaluation"


@dataclass(frozen=True, slots=True)
class Entry:
    """A problem under review."""

    key: str
    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What to look for. ``similarity`` None looks for no near duplicates. An evaluation item counts, and is reported,
    if at least ``share`` of its n-grams are found; at 0, one is enough. ``tell`` keeps contaminated problems."""

    exact: bool = True
    similarity: float | None = 0.8
    shingle: int = 3
    ngram: int = 13
    share: float = 0.0
    tell: bool = False


@dataclass(frozen=True, slots=True)
class Overlap:
    """The problem ``key`` overlaps with another problem (its key) or with an item of an evaluation set."""

    key: str
    kind: str
    other: str | Item
    share: float
    ngram: str | None = None
    removed: bool = True


Read = Callable[[], Iterable[Sequence[Entry]]]
"""Reads all problems once more, in portions, sorted by key."""
Texts = Callable[[Sequence[str]], Sequence[str]]
"""Returns the texts of the problems with these keys."""


def review(read: Read, texts: Texts, items: Sequence[Item], rules: Rules) -> list[Overlap]:
    """Every overlap. The problems to remove are those of overlaps that are ``removed``."""
    frames = Frames()
    for batch in read():
        frames.see((entry.source, entry.text) for entry in batch)
    frames.see((f"evaluation set {item.evaluation}", item.text) for item in items)
    cut = frames.cutter()
    items = [replace(item, text=cut(item.text)) for item in items]
    found = list(_first_pass(read, Evaluations(items, rules.ngram), cut, rules))
    if rules.similarity is None:
        return found
    return [*found, *_near(read, texts, cut, items, found, rules, rules.similarity)]


def _first_pass(read: Read, evaluations: Evaluations, cut: Cutter, rules: Rules) -> Iterator[Overlap]:
    """Exact duplicates, and the overlap of all other problems with evaluation sets."""
    first: dict[int, str] = {}
    for batch in read():
        left = []
        for entry in batch:
            same = first.setdefault(text_hash(entry.text), entry.key) if rules.exact else entry.key
            if same == entry.key:
                left.append(entry)
            else:
                yield Overlap(entry.key, EXACT, same, 1.0)
        if len(evaluations):
            for entry, hits in zip(left, evaluations.find([cut(entry.text) for entry in left]), strict=True):
                yield from _contaminated(entry, hits, rules)


def _contaminated(entry: Entry, hits: Sequence[Hit], rules: Rules) -> Iterator[Overlap]:
    for hit in hits:
        if hit.share >= rules.share:
            yield Overlap(entry.key, EVALUATION, hit.item, hit.share, hit.ngram, not rules.tell)


def _near(
    read: Read, texts: Texts, cut: Cutter, items: Sequence[Item], found: Sequence[Overlap], rules: Rules,
    similarity: float,
) -> Iterator[Overlap]:  # fmt: skip
    """Near duplicates among the problems that are left and the items; overlaps that were ``found`` are not repeated."""
    gone = {overlap.key for overlap in found if overlap.removed}
    known = {(overlap.key, overlap.other) for overlap in found}
    keys: list[str] = []

    def batches() -> Iterator[list[str]]:
        yield [item.text for item in items]
        for batch in read():
            left = [entry for entry in batch if entry.key not in gone]
            keys.extend(entry.key for entry in left)
            yield [cut(entry.text) for entry in left]

    def again(numbers: Sequence[int]) -> list[str]:
        some = iter(texts([keys[number - len(items)] for number in numbers if number >= len(items)]))
        return [items[number].text if number < len(items) else cut(next(some)) for number in numbers]

    for duplicate in near_duplicates(batches(), again, similarity, rules.shingle, len(items), rules.tell):
        key, of = keys[duplicate.index - len(items)], duplicate.of
        if of >= len(items):
            yield Overlap(key, NEAR, keys[of - len(items)], duplicate.similarity)
        elif (key, items[of]) not in known:
            yield Overlap(key, NEAR, items[of], duplicate.similarity, removed=not rules.tell)
