"""Measure how hard problems are, and whether the kept traces come from easier problems than were asked.

Rejection sampling keeps what a teacher gets right: more of the easy problems than of the hard ones, and more short
solutions than long ones. This module measures that bias by the problems' own difficulty if any has one, otherwise by
their pass rates among the traces that the selection chooses from. The select stage reports it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import compress
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]
"""A trace with its verdict, as returned by `distill.verification.scores`."""

UNKNOWN = "unknown"
EDGES = (0.25, 0.5, 0.75)
RATES = ("100%", "75 to 99%", "50 to 74%", "25 to 49%", "1 to 24%", "0%")
"""Bins of pass rates, easiest first."""


def pass_rates(rows: Sequence[Row]) -> dict[str, float | None]:
    """By problem, the share of correct traces among those judged; None if none could be judged."""
    judged: dict[str, list[bool]] = {row["problem_key"]: [] for row in rows}
    for row in rows:
        if row["outcome"] != "unverifiable":
            judged[row["problem_key"]].append(row["outcome"] == "correct")
    return {problem: fmean(right) if right else None for problem, right in judged.items()}


def rate_bin(rate: float | None) -> str:
    if rate is None:
        return UNKNOWN
    return RATES[0] if rate == 1 else RATES[-1] if rate == 0 else RATES[4 - sum(rate >= edge for edge in EDGES)]


def bins_of(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """The name of the measure (``difficulty`` or ``pass rate``) and the bin of each row."""
    if any(row["difficulty"] is not None for row in rows):
        return "difficulty", [UNKNOWN if row["difficulty"] is None else str(row["difficulty"]) for row in rows]
    rates = pass_rates(rows)
    return "pass rate", [rate_bin(rates[row["problem_key"]]) for row in rows]


def bias(rows: Sequence[Row], kept: Sequence[bool]) -> dict[str, Any]:
    """The problems asked and the traces generated and kept per bin, easiest first, with a one-sentence summary."""
    by, names = bins_of(rows)
    members: dict[str, list[tuple[Row, bool]]] = defaultdict(list)
    for row, keep, name in zip(rows, kept, names, strict=True):
        members[name].append((row, keep))
    found = []
    for name in sorted(members, key=_order):
        inside = members[name]
        chosen = [row for row, keep in inside if keep]
        found.append(
            {
                "bin": name,
                "problems": len({row["problem_key"] for row, _ in inside}),
                "generated": len(inside),
                "correct": sum(row["outcome"] == "correct" for row, _ in inside),
                "kept": len(chosen),
                "tokens": round(fmean(row["tokens"] for row, _ in inside), 1),
                "kept_tokens": round(fmean(row["tokens"] for row in chosen), 1) if chosen else None,
            }
        )
    return {"by": by, "bins": found, "says": _sentence(by, rows, kept)}


def _order(name: str) -> tuple[int, int]:
    """Sort key of a bin: difficulties ascending, pass rates descending, unknown last."""
    if name == UNKNOWN:
        return 1, 0
    return 0, RATES.index(name) if name in RATES else int(name)


def _sentence(by: str, rows: Sequence[Row], kept: Sequence[bool]) -> str:
    """One sentence on how much easier the kept traces are. The mean of what was asked is over problems, that of what
    was kept over traces."""
    difficulties = {row["problem_key"]: row["difficulty"] for row in rows}
    value = pass_rates(rows) if by == "pass rate" else difficulties
    asked = [number for number in value.values() if number is not None]
    chosen = [n for row in compress(rows, kept) if (n := value[row["problem_key"]]) is not None]
    if not asked or not chosen:
        return "The difficulty of the kept traces is unknown."
    before, after = fmean(asked), fmean(chosen)
    easier = after > before if by == "pass rate" else after < before
    close = abs(after - before) < 0.01 * max(abs(before), 0.01)
    what = "as hard as" if close else "easier than" if easier else "harder than"
    figures = f"{after:.0%} against {before:.0%}" if by == "pass rate" else f"{after:.2f} against {before:.2f}"
    tokens = [fmean(row["tokens"] for row in some) for some in (compress(rows, kept), rows)]
    return (
        f"The kept traces are {what} what was asked: mean {by} of their problems {figures}, "
        f"{tokens[0]:,.0f} tokens on average against {tokens[1]:,.0f} of all that was generated."
        f"{_without(by, value, rows, kept)}"
    )


def _without(by: str, value: Mapping[str, float | None], rows: Sequence[Row], kept: Sequence[bool]) -> str:
    """A sentence on the problems that the means leave out: how many of their traces were kept, and of all others."""
    unknown = [value[row["problem_key"]] is None for row in rows]
    if not any(unknown):
        return ""
    problems = sum(number is None for number in value.values())
    inside = [keep for keep, left_out in zip(kept, unknown, strict=True) if left_out]
    others = [keep for keep, left_out in zip(kept, unknown, strict=True) if not left_out]
    return (
        f" This leaves out {problems:,} of {len(value):,} problems, whose {by} is unknown: {sum(inside):,} of their "
        f"{len(inside):,} traces are kept, of the others {sum(others):,} of {len(others):,}."
    )


def shares(found: Mapping[str, Any], of: str) -> list[float]:
    """The share of each bin in the total of the column ``of`` (problems, generated, kept); for plots."""
    total = sum(row[of] for row in found["bins"]) or 1
    return [row[of] / total for row in found["bins"]]
