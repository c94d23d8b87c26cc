"""Splits texts into words, and hashes words and runs of n words, for many texts at a time.

Words are runs of letters and digits, ignoring case; a Chinese or Japanese character is a word, as these are written
without spaces. Tokens are words and every other sign, since ``2 + 3`` and ``2 * 3`` differ. How Unicode writes a letter
(composed or not, full width, mathematical italics) makes no difference. All hashes are the same in every process and on
every machine.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
TOKEN = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+|[^\w\s]|_")
ASCII_WORD = re.compile("[a-z0-9]+")
ASCII_TOKEN = re.compile(r"[a-z0-9]+|[^a-z0-9\s]")
"""The same for ASCII, which most texts are, in a third of the time."""
BASE = np.uint64(0x9E3779B97F4A7C15)
REMEMBERED = 1 << 20


def words(text: str) -> list[str]:
    return ASCII_WORD.findall(text.casefold()) if text.isascii() else WORD.findall(_one_form(text))


def tokens(text: str) -> list[str]:
    return ASCII_TOKEN.findall(text.casefold()) if text.isascii() else TOKEN.findall(_one_form(text))


def _one_form(text: str) -> str:
    """The text in compatible composed form, without case. Marks that are left over, as the vowel signs of Hindi, go:
    they are no letters to `re`, and would divide every word."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    marks = {ord(sign): None for sign in set(folded) if unicodedata.category(sign).startswith("M")}
    return folded.translate(marks) if marks else folded


def text_hash(text: str) -> int:
    """A 64-bit hash of a text, ignoring differences in white space."""
    return int.from_bytes(blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=8).digest())


class WordHashes:
    """The hashes of words. Each word is hashed once; beyond a million different ones, the cache is cleared."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, texts: Sequence[Sequence[str]]) -> tuple[Hashes, Places]:
        """(all words of all texts in a row, how many each text has)."""
        flat = [word for text in texts for word in text]
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        if len(self._known) > REMEMBERED:
            self._known.clear()
        for word in set(flat).difference(self._known):
            digest = blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            self._known[word] = int.from_bytes(digest)
        return np.fromiter(map(self._known.__getitem__, flat), np.uint64, len(flat)), lengths


def ngram_hashes(flat: Hashes, lengths: Places, n: int) -> tuple[Hashes, Places]:
    """(a hash for every run of n words inside a text, the text that each belongs to), in order."""
    count = len(flat) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    found = np.zeros(count, np.uint64)
    for place in range(n):
        found *= BASE
        found += flat[place : place + count]
    owners = np.repeat(np.arange(len(lengths)), lengths)
    inside = owners[:count] == owners[n - 1 :]
    return mixed(found[inside]), owners[:count][inside]


def mixed(values: Hashes) -> Hashes:
    """Mix the bits of each number so that every bit depends on all of them (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingles(texts: Sequence[str], n: int, hashes: WordHashes) -> tuple[Hashes, Places]:
    """Hashes of all runs of n tokens, and the text of each; a shorter text is padded to one run."""
    split = [tokens(text) for text in texts]
    filled = [text if len(text) >= n else [*text, *[""] * (n - len(text))] for text in split]
    return ngram_hashes(*hashes.of(filled), n)
