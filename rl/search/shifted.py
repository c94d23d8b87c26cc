"""One search on many orders of the same samples: what it comes to on average, and not with the luck of one order."""

from __future__ import annotations

from dataclasses import replace

from rl.search.allocation import JointSearch
from rl.search.base import Draw, Need, Search


def shifted(search: Search, start: int, stored: int) -> Search:
    """The search with sample ``start`` for its first, and so on; behind the last of the ``stored`` ones the first."""
    need: Need = next(search)
    while True:
        if isinstance(need, Draw):
            need = Draw(tuple(replace(draft, index=(draft.index + start) % stored) for draft in need.items))
        answers = yield need
        try:
            need = search.send(answers)
        except StopIteration as ended:
            return ended.value


def shifted_joint(search: JointSearch, start: int, stored: int) -> JointSearch:
    """The same of one search over all problems."""
    wanted = next(search)
    while True:
        moved = [(number, replace(draft, index=(draft.index + start) % stored)) for number, draft in wanted]
        pieces = yield moved
        try:
            wanted = search.send(pieces)
        except StopIteration as ended:
            return ended.value


def starts(stored: int, orders: int) -> list[int]:
    """Places to begin, evenly apart."""
    count = min(stored, orders)
    return [at * stored // count for at in range(count)]
