"""Run one search on many orders of the same samples, for a mean that does not depend on the luck of one order."""

from __future__ import annotations

from dataclasses import replace

from rl.search.allocation import JointSearch
from rl.search.base import Draw, Need, Search


def shifted(search: Search, start: int, stored: int) -> Search:
    """The search with its samples taken from ``start`` on, wrapping around after the last of the ``stored`` ones."""
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
    """The same for one search over all problems."""
    wanted = next(search)
    while True:
        moved = [(number, replace(draft, index=(draft.index + start) % stored)) for number, draft in wanted]
        pieces = yield moved
        try:
            wanted = search.send(pieces)
        except StopIteration as ended:
            return ended.value


def starts(stored: int, orders: int) -> list[int]:
    """Evenly spaced start positions."""
    count = min(stored, orders)
    return [at * stored // count for at in range(count)]
