"""Near duplicates: which texts go because an earlier one says almost the same.

Texts come in an order that content alone decides (by key), and one is dropped if it is as alike as asked to one
before it that is kept. So every dropped text has a kept one that stands for it, and no two kept ones that were
compared are duplicates. Those that come first may be fixed: they go for nothing, as the items of an evaluation set.
Candidates come from `distill.curation.minhash`; near the threshold the similarity itself
decides, not its estimate, unless there are too many such pairs (`DOUBTS`) to look at each.

Of a crowd, very many texts that share a band, not every pair is compared: there the same is done again with those
that are kept, until nothing changes or `ROUNDS` are over. What stands for a text may then itself have gone in a later
round.
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
"""How far from the threshold an estimate of 128 permutations is believed: four standard deviations."""
DOUBTS = 500_000
"""Where more pairs than these are near the threshold, the estimate decides: the texts are of a few moulds."""
ROUNDS = 3
PORTION = 10_000
"""Pairs whose texts are looked at together."""

Texts = Callable[[Sequence[int]], Sequence[str]]
"""The texts of these numbers."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Text ``index`` goes; ``of`` stands for it. ``similarity`` is exact."""

    index: int
    of: int
    similarity: float


def near_duplicates(
    batches: Iterable[Sequence[str]], texts: Texts, similarity: float, shingle: int, fixed: int = 0, spare: bool = False
) -> list[Duplicate]:
    """The duplicates among the texts of all batches, numbered as they come; ``texts`` gives some once more.

    The first ``fixed`` texts never go. What is like one of these is told, and goes, unless ``spare``.
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
        edges = _edges(low_bytes, keys, partial(_of, texts, kept), similarity, shingle)
        dropped, spared = _greedy(edges, fixed, spare)
        pairs = np.array([*dropped.items(), *spared.items()], np.int64).reshape(-1, 2)
        alike = _similarities(pairs, partial(_of, texts, kept), shingle)
        for (index, of), similar in zip(kept[pairs].tolist(), alike, strict=True):
            found[index, of] = Duplicate(index, of, similar)
        if not dropped or not crowded(keys):
            break
        gone = list(dropped)
        low_bytes, keys, kept = np.delete(low_bytes, gone, 0), np.delete(keys, gone, 0), np.delete(kept, gone)
    return sorted(found.values(), key=lambda duplicate: (duplicate.index, duplicate.of))


def _of(texts: Texts, kept: Places, places: Places) -> Sequence[str]:
    """The texts of these places among the kept ones."""
    return texts(kept[places].tolist())


def _edges(
    low_bytes: NDArray[np.uint8], keys: NDArray[np.uint32], texts: Callable[[Places], Sequence[str]],
    similarity: float, shingle: int,
) -> NDArray[np.int64]:  # fmt: skip
    """Pairs (later, earlier) that are alike, sorted."""
    total = len(keys)
    sure, unsure = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    doubts = 0
    for one, other in candidates(keys):
        codes = np.maximum(one, other) * total + np.minimum(one, other)
        estimated = estimates(low_bytes, one, other)
        sure.append(codes[estimated >= similarity + (MARGIN if doubts <= DOUBTS else 0)])
        if doubts <= DOUBTS:
            unsure.append(codes[np.abs(estimated - similarity) < MARGIN])
            doubts += len(unsure[-1])
    doubtful = np.unique(np.concatenate(unsure))
    if doubts > DOUBTS:
        estimated = estimates(low_bytes, doubtful // total, doubtful % total)
        decided = doubtful[estimated >= similarity]
    else:
        decided = _decided(doubtful, total, texts, similarity, shingle)
    certain = np.unique(np.concatenate([*sure, decided]))
    return np.stack([certain // total, certain % total], axis=1)


def _decided(
    codes: NDArray[np.int64], total: int, texts: Callable[[Places], Sequence[str]], similarity: float, shingle: int
) -> NDArray[np.int64]:
    """Those of the pairs that are as alike as asked, by the similarity itself."""
    alike = _similarities(np.stack([codes // total, codes % total], axis=1), texts, shingle)
    return codes[np.array(alike) >= similarity]


def _similarities(pairs: Places, texts: Callable[[Places], Sequence[str]], shingle: int) -> list[float]:
    """Of each pair of places, in portions."""
    found: list[float] = []
    for at in range(0, len(pairs), PORTION):
        part = pairs[at : at + PORTION]
        places, numbered = np.unique(part, return_inverse=True)
        found += jaccard(texts(places), numbered.reshape(-1, 2).tolist(), shingle)
    return found


def _greedy(edges: NDArray[np.int64], fixed: int, spare: bool) -> tuple[dict[int, int], dict[int, int]]:
    """Which texts go, and for which kept one; and which are spared that are like a fixed one. ``edges`` (later,
    earlier) are sorted."""
    dropped: dict[int, int] = {}
    spared: dict[int, int] = {}
    for later, earlier in edges.tolist():
        if later < fixed or later in dropped or earlier in dropped:
            continue
        if earlier < fixed and spare:
            spared.setdefault(later, earlier)
        else:
            dropped[later] = earlier
    return dropped, spared
