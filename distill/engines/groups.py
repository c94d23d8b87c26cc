"""Prompt sharing: a long prompt's keys and values are stored once for all rows that read them, up to `SHARE` rows.

Short prompts are copied into each row, since sharing adds a matrix product to every layer, which costs as much as
reading a few hundred positions. The choice depends on the prompt alone, so a row has the same bits whatever runs
beside it. `Groups` assigns each row a place at a stored prompt; a prompt wanted by more than `SHARE` rows is copied,
not computed again. A `Layout` is the same assignment as tensors, for attention. Nothing here depends on a model.
Owned by `distill.engines.decode.Decoder`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from distill.tensors import put

SHARE = 8
"""Most rows per stored prompt: with more, prompts with few rows would pay for many empty places."""
FEWEST = 4
"""Fewest prompts read, and queries to each: smaller matrix products give other bits."""
LONG = 192
"""Prompts of at least this many tokens are shared, not copied."""
GRANULE = 16
"""Key-value lengths are multiples of this many positions."""


def granules(length: int) -> int:
    """``length`` rounded up to a whole number of granules, at least one."""
    return max(1, -(-length // GRANULE)) * GRANULE


class Beginning(NamedTuple):
    """A row's tokens before the first draw. Rows share a beginning only if all of it is equal.

    The last ``given`` of the ``ids`` belong to the response; their log-probabilities depend on the temperature.
    """

    ids: tuple[int, ...]
    given: int = 0
    temperature: float = 1.0

    @property
    def shared(self) -> bool:
        return len(self.ids) >= LONG


@dataclass(slots=True)
class Group:
    """The rows that attend to one stored prompt."""

    beginning: Beginning
    rows: list[int]


class Groups:
    """Prompt slots and the rows at them. ``queries`` is the number of query heads per key-value head."""

    def __init__(self, queries: int) -> None:
        self._least = -(-FEWEST // max(1, queries))
        self._groups: dict[int, Group] = {}
        self._slots: dict[Beginning, list[int]] = {}
        self._of: dict[int, int] = {}

    @property
    def width(self) -> int:
        """Prompt slots in use, counted up to the last one."""
        return max(self._groups, default=-1) + 1

    def would_need(self, beginning: Beginning) -> int:
        """``width`` if a row with this beginning entered."""
        if self._with_room(beginning) is not None:
            return self.width
        return max(self.width, self._free() + 1)

    def enter(self, row: int, beginning: Beginning) -> tuple[int, int | None]:
        """Returns (slot, source): if they are equal, the prompt is there; else copy it from ``source``, or compute it
        if that is None."""
        slot, source = self._with_room(beginning), None
        if slot is None:
            slot, same = self._free(), self._slots.setdefault(beginning, [])
            source = same[0] if same else None
            same.append(slot)
            self._groups[slot] = Group(beginning, [])
        else:
            source = slot
        self._groups[slot].rows.append(row)
        self._of[row] = slot
        return slot, source

    def leave(self, rows: Iterable[int]) -> bool:
        """Remove rows; returns whether any stored prompt is now unused. Rows with a short prompt are ignored."""
        emptied = False
        for row in self._of.keys() & set(rows):
            slot = self._of.pop(row)
            group = self._groups[slot]
            group.rows.remove(row)
            if not group.rows:
                self._forget(slot)
                emptied = True
        return emptied

    def move_rows(self, sources: list[int], targets: list[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            if source not in self._of:
                continue
            slot = self._of[target] = self._of.pop(source)
            rows = self._groups[slot].rows
            rows[rows.index(source)] = target

    def compact(self) -> tuple[list[int], list[int]]:
        """Move prompts into low slots; returns the (sources, targets) to copy."""
        width = len(self._groups)
        sources = sorted(slot for slot in self._groups if slot >= width)
        targets = [slot for slot in range(width) if slot not in self._groups][: len(sources)]
        for source, target in zip(sources, targets, strict=True):
            group = self._groups[target] = self._groups[source]
            self._forget(source)
            self._slots.setdefault(group.beginning, []).append(target)
            self._of.update(dict.fromkeys(group.rows, target))
        return sources, targets

    def layout(self, rows: int, device: torch.device) -> Layout | None:
        """The layout of a step of ``rows`` rows; None if none shares a prompt.

        An empty place points to row 0, and a row that shares no prompt to place 0; these results are discarded.
        """
        if not self._groups:
            return None
        prompts = -(-self.width // FEWEST) * FEWEST
        share = max(self._least, max((len(group.rows) for group in self._groups.values()), default=1))
        members = [[0] * share for _ in range(prompts)]
        places, sharing, length = [0] * rows, [0.0] * rows, 0
        for slot, group in self._groups.items():
            length = max(length, len(group.beginning.ids) - 1)
            for place, row in enumerate(group.rows):
                members[slot][place], places[row], sharing[row] = row, slot * share + place, 1.0
        tensors = (put(values, device) for values in (members, places, sharing))
        return Layout(prompts, share, granules(length), *tensors)

    def _with_room(self, beginning: Beginning) -> int | None:
        slots = self._slots.get(beginning, ())
        return next((slot for slot in slots if len(self._groups[slot].rows) < SHARE), None)

    def _free(self) -> int:
        return next(slot for slot in range(len(self._groups) + 1) if slot not in self._groups)

    def _forget(self, slot: int) -> None:
        beginning = self._groups.pop(slot).beginning
        self._slots[beginning].remove(slot)
        if not self._slots[beginning]:
            del self._slots[beginning]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The first ``prompts`` (P) stored prompts, of ``length`` positions, with ``share`` (S) places each.

    ``members`` (P, S) names the row at each place; ``places`` (R,) names the place (p S + s) of each row;
    ``sharing`` (R,) is 1 for rows that share a prompt, else 0.
    """

    prompts: int
    share: int
    length: int
    members: Tensor
    places: Tensor
    sharing: Tensor
    _by_heads: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict, init=False)

    def indices(self, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """For ``heads`` (H) key-value heads: (P H S,) into rows (R H), (R H,) into places (P H S), sharing (R H, 1)."""
        if heads not in self._by_heads:
            head = torch.arange(heads, device=self.places.device)
            to_places = self.members[:, None, :] * heads + head[:, None]
            prompt, place = self.places // self.share, self.places % self.share
            to_rows = (prompt[:, None] * heads + head) * self.share + place[:, None]
            self._by_heads[heads] = (
                to_places.flatten(),
                to_rows.flatten(),
                self.sharing.repeat_interleave(heads)[:, None],
            )
        return self._by_heads[heads]
