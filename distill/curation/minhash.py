"""MinHash: finds similar texts among very many, without comparing every pair.

A text is the set of its runs of tokens (shingles), and the similarity of two texts is the share of runs that they have
in common (Jaccard). The share of equal numbers in two signatures is an unbiased estimate of it (Broder 1997), and texts
that agree in a band of their signatures are candidates (locality-sensitive hashing; Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, section 3.4). Only one byte per permutation and four per band are kept of a text, about 200
bytes in all. It is written in numpy, which is several times faster than a library that takes texts one by one, and
keeps no Python object per text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from distill.curation.words import BASE, Hashes, Places, WordHashes, mixed, shingles
from distill.randomness import generator

PERMUTATIONS = 128
RECALL = 0.99
"""The share of pairs at the similarity threshold that become candidates; of more similar pairs, more do."""
WINDOW = 16
"""In a band that very many texts share, each is compared with this many neighbours."""
CHUNK = 200_000

Signatures = NDArray[np.uint32]
Pairs = tuple[Places, Places]


def permutations(count: int = PERMUTATIONS) -> tuple[Hashes, Hashes]:
    """Multipliers (odd) and addends; always the same."""
    draw = generator("minhash").integers(0, 1 << 63, (2, count), dtype=np.uint64)
    return draw[0] * np.uint64(2) + np.uint64(1), draw[1]


def signatures(hashes: Hashes, owners: Places, texts: int, count: int = PERMUTATIONS) -> Signatures:
    """(texts x permutations) the smallest number that each permutation gives to any shingle of each text.

    Every text must have a shingle, and shingles must be ordered by text.
    """
    begins = np.searchsorted(owners, np.arange(texts))
    found = np.empty((count, texts), np.uint32)
    for row, multiplier, addend in zip(found, *permutations(count), strict=True):
        permuted = (hashes * multiplier + addend) >> np.uint64(32)
        row[:] = np.minimum.reduceat(permuted, begins)
    return np.ascontiguousarray(found.T)


def rows_of_a_band(similarity: float, count: int = PERMUTATIONS) -> int:
    """The most rows per band with which pairs of this similarity still become candidates as often as `RECALL`."""
    fits = [r for r in range(1, 17) if 1 - (1 - similarity**r) ** (count // r) >= RECALL]
    return max(fits, default=1)


def band_keys(found: Signatures, rows: int) -> NDArray[np.uint32]:
    """(texts x bands) one number for each band of ``rows`` numbers of a signature."""
    bands = found.shape[1] // rows
    split = found[:, : bands * rows].reshape(len(found), bands, rows).astype(np.uint64)
    keys = np.zeros(split.shape[:2], np.uint64)
    for row in range(rows):
        keys = keys * BASE + split[:, :, row]
    return (mixed(keys) >> np.uint64(32)).astype(np.uint32)


def candidates(keys: NDArray[np.uint32], window: int = WINDOW) -> Iterator[Pairs]:
    """Pairs of texts that share a band, in portions. In a crowd (more than ``window`` texts that share one), a text is
    paired only with its neighbours when sorted by the next bands too, which brings the most similar together."""
    bands = keys.shape[1]
    for band in range(bands):
        column = keys[:, band]
        values, counts = np.unique(column, return_counts=True)
        shared = np.flatnonzero(np.isin(column, values[counts > 1]))
        following = [keys[shared, (band + step) % bands] for step in (3, 2, 1)]
        order = shared[np.lexsort((*following, column[shared]))]
        for distance in range(1, window + 1):
            first, second = order[:-distance], order[distance:]
            alike = column[first] == column[second]
            if not alike.any():
                break
            yield first[alike], second[alike]


def crowded(keys: NDArray[np.uint32], window: int = WINDOW) -> bool:
    return any(np.unique(column, return_counts=True)[1].max(initial=0) > window + 1 for column in keys.T)


def estimates(low_bytes: NDArray[np.uint8], first: Places, second: Places) -> NDArray[np.float64]:
    """The estimated similarity of pairs: the share of equal bytes, corrected for those that are equal by chance."""
    parts = [
        (low_bytes[first[at : at + CHUNK]] == low_bytes[second[at : at + CHUNK]]).mean(axis=1)
        for at in range(0, len(first), CHUNK)
    ]
    equal = np.concatenate(parts) if parts else np.empty(0)
    return (equal - 1 / 256) / (1 - 1 / 256)


def jaccard(texts: Sequence[str], pairs: Sequence[Sequence[int]], n: int) -> list[float]:
    """The exact similarity of pairs of these texts."""
    hashes, owners = shingles(texts, n, WordHashes())
    sets = [set(part.tolist()) for part in np.split(hashes, np.searchsorted(owners, np.arange(1, len(texts))))]
    shared = [(len(sets[one] & sets[other]), one, other) for one, other in pairs]
    return [common / (len(sets[one]) + len(sets[other]) - common) for common, one, other in shared]


class Sketches:
    """What is kept of texts: the low bytes of their signatures, and the keys of their bands."""

    def __init__(self, n: int, similarity: float) -> None:
        self._n, self._rows, self._hashes = n, rows_of_a_band(similarity), WordHashes()
        self._bytes: list[NDArray[np.uint8]] = []
        self._keys: list[NDArray[np.uint32]] = []

    def add(self, texts: Sequence[str]) -> None:
        if texts:
            found = signatures(*shingles(texts, self._n, self._hashes), len(texts))
            self._bytes.append((found & 0xFF).astype(np.uint8))
            self._keys.append(band_keys(found, self._rows))

    def taken(self) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        """(low bytes, band keys) of all texts; frees the portions."""
        low_bytes = np.concatenate(self._bytes)
        self._bytes = []  # most of the memory: freed before the keys are joined
        keys = np.concatenate(self._keys)
        self._keys = []
        return low_bytes, keys
