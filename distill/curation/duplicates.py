"""Near duplicates: drops texts that say almost the same as an earlier one.

Texts come in an order that depends on content alone (by key). A text is dropped if it is similar enough to an earlier
one that is kept. So every dropped text is represented by a kept one, and no two kept texts that were compared are
duplicates. The first texts can be fixed, so that they are never dropped, like the items of an evaluation set.
Candidates come from `distill.curation.minhash`; near the threshold, the exact similarity decides and not its estimate,
unless there are too many such pairs (`DOUBTS`).

In a crowd, that is, very many texts that share a band, not every pair is compared. There, the same is repeated with the
texts that are kept, until nothing changes or for `ROUNDS`. The text that represents another may then be dropped itself
in a later round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from distill.curation.minhash import Sketches, candidates, crowded, estimates, jaccard
from distill.curation.words import Places

MARGIN = 0.15
"""The distance from the threshold at which an estimate by 128 permutations is trusted: four standard deviations."""
DOUBTS = 500_000
"""If more pairs than this are near the threshold, the estimate decides: the texts come from a few templates."""
ROUNDS = 3
PORTION = 10_000
"""Pairs whose texts are read together."""
MERGED = 5_000_000
"""Once this many pairs are found, those that were found in several bands become one."""

Texts = Callable[[Sequence[int]], Sequence[str]]
"""Returns the texts with these numbers."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Text ``index`` is a near duplicate of text ``of``, which represents it. ``similarity`` is exact."""

    index: int
    of: int
    similarity: float


def near_duplicates(
    batches: Iterable[Sequence[str]], texts: Texts, similarity: float, shingle: int, fixed: int = 0, spare: bool = False
) -> list[Duplicate]:
    """The duplicates among the texts of all batches, numbered as they come; ``texts`` reads some of them again.

    The first ``fixed`` texts are never dropped. A text similar to one of these is reported and dropped; with ``spare``,
    it is only reported.
    """
    sketches = Sketches(shingle, similarity)
    total = 0
    for batch in batches:
        sketches.add(batch)
        total += len(batch)
    if total < 2:
        return []
    low_bytes, keys = sketches.taken()
    kept = np.arange(total)
    found: dict[tuple[int, int], Duplicate] = {}
    for _ in range(ROUNDS):
        edges = _edges(low_bytes, keys, partial(_texts_at, texts, kept), similarity, shingle)
        dropped, spared = _greedy(edges, len(keys), fixed, spare)
        pairs = np.array([*dropped.items(), *spared.items()], np.int64).reshape(-1, 2)
        alike = _similarities(pairs, partial(_texts_at, texts, kept), shingle)
        for (index, of), similar in zip(kept[pairs].tolist(), alike, strict=True):
            found[index, of] = Duplicate(index, of, similar)
        if not dropped or not crowded(keys):
            break
        gone = list(dropped)
        low_bytes, keys, kept = np.delete(low_bytes, gone, 0), np.delete(keys, gone, 0), np.delete(kept, gone)
    return sorted(found.values(), key=lambda duplicate: (duplicate.index, duplicate.of))


def _texts_at(texts: Texts, kept: Places, places: Places) -> Sequence[str]:
    """The texts at these places among the kept ones."""
    return texts(kept[places].tolist())


def _edges(
    low_bytes: NDArray[np.uint8], keys: NDArray[np.uint32], texts: Callable[[Places], Sequence[str]],
    similarity: float, shingle: int,
) -> NDArray[np.int64]:  # fmt: skip
    """The pairs of similar texts, sorted, each as one number: later * total + earlier."""
    total = len(keys)
    sure, unsure = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    doubts = added = 0
    for one, other in candidates(keys):
        codes = np.maximum(one, other) * total + np.minimum(one, other)
        estimated = estimates(low_bytes, one, other)
        sure.append(codes[estimated >= similarity + (MARGIN if doubts <= DOUBTS else 0)])
        added += len(sure[-1])
        if added > max(MERGED, len(sure[0])):
            sure, added = [np.unique(np.concatenate(sure))], 0
        if doubts <= DOUBTS:
            unsure.append(codes[np.abs(estimated - similarity) < MARGIN])
            doubts += len(unsure[-1])
    doubtful = np.unique(np.concatenate(unsure))
    if doubts > DOUBTS:
        estimated = estimates(low_bytes, doubtful // total, doubtful % total)
        decided = doubtful[estimated >= similarity]
    else:
        decided = _exactly_similar(doubtful, total, texts, similarity, shingle)
    return np.unique(np.concatenate([*sure, decided]))


def _exactly_similar(
    codes: NDArray[np.int64], total: int, texts: Callable[[Places], Sequence[str]], similarity: float, shingle: int
) -> NDArray[np.int64]:
    """The pairs whose exact similarity reaches the threshold."""
    alike = _similarities(np.stack([codes // total, codes % total], axis=1), texts, shingle)
    return codes[np.array(alike) >= similarity]


def _similarities(pairs: Places, texts: Callable[[Places], Sequence[str]], shingle: int) -> list[float]:
    """The exact similarity of each pair of places, in portions."""
    found: list[float] = []
    for at in range(0, len(pairs), PORTION):
        part = pairs[at : at + PORTION]
        places, numbered = np.unique(part, return_inverse=True)
        found += jaccard(texts(places), numbered.reshape(-1, 2).tolist(), shingle)
    return found


def _greedy(codes: NDArray[np.int64], total: int, fixed: int, spare: bool) -> tuple[dict[int, int], dict[int, int]]:
    """(each dropped text with the kept one that represents it, each spared text with the fixed one that it resembles).
    ``codes`` are the pairs of similar texts, as from `_edges`."""
    dropped: dict[int, int] = {}
    spared: dict[int, int] = {}
    for at in range(0, len(codes), PORTION):  # as Python's numbers, all of them would fill the memory
        for later, earlier in zip(*(part.tolist() for part in np.divmod(codes[at : at + PORTION], total)), strict=True):
            if later < fixed or later in dropped or earlier in dropped:
                continue
            if earlier < fixed and spare:
                spared.setdefault(later, earlier)
            else:
                dropped[later] = earlier
    return dropped, spared
