"""Compare two written numbers, each perhaps with a unit: 5 and 5 apples, 500 cm and 5 m, 25% and 0.25, 1/3 and 0.33.

Where the two are equal only under some reading that nothing in the texts decides (a percent sign, an ordinal, a
rounding), the verdict is `unverifiable`. `distill.verifiers.number` reads the numbers, `distill.verifiers.units` their
units.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from distill.types import Verdict
from distill.verifiers import units
from distill.verifiers.number import Number, read_number

Evidence = dict[str, Any]


def same_number(wanted: Number, given: Number, evidence: Evidence) -> Verdict:
    evidence = evidence | {"method": "number"}
    if wanted.unit and given.unit and wanted.unit != given.unit:
        return _other_unit(wanted, given, evidence)
    if wanted.value == given.value and (wanted.unit == units.POSITION) != (given.unit == units.POSITION):
        return Verdict.unverifiable("equal only if a position is asked for", **evidence)
    if wanted.value == given.value:
        return Verdict.correct("the same number", **evidence)
    if (
        wanted.unit != given.unit
        and "%" in (wanted.unit, given.unit)
        and 100 in (_ratio(wanted, given), _ratio(given, wanted))
    ):
        return Verdict.unverifiable("equal only if the percent sign means a hundredth", **evidence)
    if wanted.scale != given.scale and wanted.value * given.scale == given.value * wanted.scale:
        return Verdict.unverifiable("equal only if the word after the number is a unit", **evidence)
    if rounds(wanted, given) or rounds(given, wanted):
        return Verdict.unverifiable("equal only to the decimals written", **evidence)
    return Verdict.incorrect("a different number", **evidence)


def same_short_unit(reference: str, given: str, evidence: Evidence) -> Verdict | None:
    """``5 m`` against 500 cm: a letter counts as a unit only if the other side has a unit of the same dimension."""
    wanted, number = read_number(reference, short_unit=True), read_number(given)
    if wanted is None or number is None or not number.unit:
        return None
    ours, theirs = units.quantity(wanted.unit), units.quantity(number.unit)
    alike = ours and theirs and ours.dimension == theirs.dimension
    return same_number(wanted, number, evidence) if alike else None


def _ratio(one: Number, other: Number) -> Fraction:
    return one.value / (other.value or 1)


def _other_unit(wanted: Number, given: Number, evidence: Evidence) -> Verdict:
    ours, theirs = units.quantity(wanted.unit), units.quantity(given.unit)
    if ours and theirs and ours.dimension == theirs.dimension:
        if wanted.value * ours.size == given.value * theirs.size:
            return Verdict.correct("the same quantity in another unit", **evidence)
        return Verdict.incorrect("a different quantity", **evidence)
    return Verdict.unverifiable(f"the units differ: {' and '.join(sorted((wanted.unit, given.unit)))}", **evidence)


def rounds(exact: Number, decimal: Number) -> bool:
    """Whether ``decimal`` is the fraction ``exact``, rounded or cut off."""
    if exact.decimals is not None or decimal.decimals is None or decimal.decimals < 2:
        return False
    off = (exact.value - decimal.value) * 10**decimal.decimals * (1 if exact.value > 0 else -1)
    return -1 <= 2 * off < 2
