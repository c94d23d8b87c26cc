"""Randomness as a function: every draw is computed from (seed, purpose, index), never from hidden state.

A resumed run therefore needs no generator state, and a sample does not depend on its neighbours. Numpy's Philox is
counter-based and stable across platforms and releases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


def generator(*parts: object) -> np.random.Generator:
    """A numpy generator that is a pure function of ``parts`` (numbers and strings)."""
    import numpy as np

    text = "\x1f".join(map(str, parts))
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def permutation(length: int, *parts: object) -> list[int]:
    """A permutation of ``range(length)``, a pure function of ``parts``."""
    return [int(i) for i in generator(*parts).permutation(length)]


def held_out(groups: Iterable[str], share: float, *parts: object) -> set[str]:
    """About ``share`` of the groups; if there are several, at least one and not all. A pure function of the groups and
    ``parts``."""
    names = sorted(set(groups))
    count = min(max(1, round(share * len(names))), len(names) - 1)
    return {names[i] for i in permutation(len(names), *parts)[:count]}


def shuffled(items: Sequence[T], *parts: object) -> list[T]:
    return [items[i] for i in permutation(len(items), *parts)]
