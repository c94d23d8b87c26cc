"""Overlap with evaluation sets: which texts share a run of n words with an evaluation item.

GPT-3 used thirteen words (Brown et al. 2020, appendix C); s1 (arXiv:2501.19393) and open-r1 use eight, which finds more
true overlaps and more false ones. An item of fewer than n words counts as one run, if it has `LEAST_WORDS`; a shorter
one must be the same as the whole text. A hit includes the share of the item that is found, to tell a copy from a common
phrase.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from distill.curation.words import Hashes, Places, WordHashes, ngram_hashes, tokens, words

LEAST_WORDS = 8
CANDIDATES = 8
"""Items of an evaluation set that are compared word for word with a text: those of which it has most. A run that many
items have counts little, or a phrase that they all begin with would hide the one that was copied."""
ITEMS_OF_A_RUN = 100
"""If more items than this have the same run, it is looked up in this many of them."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item of an evaluation set. ``name`` and ``origin`` are how people find it."""

    evaluation: str
    name: str
    origin: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A text shares ``ngram`` with an item; ``share`` of the item's runs of n words are in the text."""

    item: Item
    ngram: str
    share: float


class Evaluations:
    """An index of the runs of words of all items of all evaluation sets, to look up texts."""

    def __init__(self, items: Iterable[Item], n: int) -> None:
        self._items = sorted(set(items), key=lambda item: (item.evaluation, item.name, item.origin, item.text))
        self._words = [words(item.text) for item in self._items]
        self._same: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self._hashes, self._n = WordHashes(), n
        by_length: dict[int, list[int]] = defaultdict(list)
        for number, (item, item_words) in enumerate(zip(self._items, self._words, strict=True)):
            if len(item_words) >= min(n, LEAST_WORDS):
                by_length[min(n, len(item_words))].append(number)
            if whole := tuple(tokens(item.text)):
                self._same[whole].append(number)
        self._runs = {length: self._index(numbers, length) for length, numbers in sorted(by_length.items())}

    def __len__(self) -> int:
        return len(self._items)

    def _index(self, numbers: list[int], length: int) -> tuple[Hashes, Places, Places]:
        """(hashes of runs, sorted; where the items of each begin; items)."""
        flat, lengths = self._hashes.of([self._words[number] for number in numbers])
        found, owners = ngram_hashes(flat, lengths, length)
        order = np.lexsort((owners, found))
        runs, begins = np.unique(found[order], return_index=True)
        return runs, np.append(begins, len(found)), np.array(numbers)[owners[order]]

    def find(self, texts: Sequence[str], most: int = 3) -> list[list[Hit]]:
        """The overlaps of each text, the largest first, at most ``most`` per evaluation set."""
        split = [words(text) for text in texts]
        shared: list[dict[int, float]] = [defaultdict(float) for _ in texts]
        flat, lengths = self._hashes.of(split)
        for length, (runs, begins, items) in self._runs.items():
            found, owners = ngram_hashes(flat, lengths, length)
            places = np.minimum(np.searchsorted(runs, found), len(runs) - 1)
            hits = runs[places] == found
            for owner, place in np.unique(np.stack([owners[hits], places[hits]], axis=1), axis=0).tolist():
                begin, end = begins[place], begins[place + 1]
                for item in items[begin : min(end, begin + ITEMS_OF_A_RUN)].tolist():
                    shared[owner][item] += 1 / ((end - begin) * self._runs_of(item))
        return [
            self._checked_hits(text_words, weights, self._same.get(tuple(tokens(text)), ()), most)
            if weights or self._too_short(text_words)
            else []
            for text, text_words, weights in zip(texts, split, shared, strict=True)
        ]

    def _runs_of(self, number: int) -> int:
        """How many runs of words an item has."""
        return len(self._words[number]) - min(self._n, len(self._words[number])) + 1

    def _too_short(self, text_words: Sequence[str]) -> bool:
        """Whether the text could be an item that is too short to be looked up by its runs."""
        return len(text_words) < min(self._n, LEAST_WORDS)

    def _checked_hits(
        self, text_words: list[str], weights: dict[int, float], same: Sequence[int], most: int
    ) -> list[Hit]:
        """The hits, checked word for word, since equal hashes prove nothing."""
        by_evaluation: dict[str, list[int]] = defaultdict(list)
        for number in sorted({*weights, *same}, key=lambda number: (-weights.get(number, 0), number)):
            by_evaluation[self._items[number].evaluation].append(number)
        hits = []
        for numbers in by_evaluation.values():
            found = [hit for number in numbers[:CANDIDATES] if (hit := self._hit(number, text_words, number in same))]
            hits += sorted(found, key=lambda hit: -hit.share)[:most]
        return sorted(hits, key=lambda hit: -hit.share)

    def _hit(self, number: int, text_words: list[str], same: bool) -> Hit | None:
        item, wanted = self._items[number], self._words[number]
        if same:
            return Hit(item, " ".join(wanted[: self._n]) or item.text, 1.0)
        length = min(self._n, len(wanted))
        runs = [tuple(wanted[at : at + length]) for at in range(len(wanted) - length + 1)]
        there = {tuple(text_words[at : at + length]) for at in range(len(text_words) - length + 1)}
        found = [run for run in runs if run in there]
        return Hit(item, " ".join(found[0]), len(found) / len(runs)) if found else None
