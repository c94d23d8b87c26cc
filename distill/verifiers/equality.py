"""How certain it is that two expressions are equal, by two independent checks: normal forms and random points."""

from __future__ import annotations

from enum import IntEnum

from distill.verifiers import normal, points
from distill.verifiers.tree import Node


class Sameness(IntEnum):
    """Ordered, so that the sameness of a whole is the minimum over its parts."""

    DIFFERENT = 0  # a clear difference, at a point or in exact arithmetic
    UNKNOWN = 1
    LIKELY = 2  # equal at random points
    PROVED = 3  # equal at random points and in normal form, or equal rational numbers


def same_value(one: Node, other: Node) -> Sameness:
    if infinity(one) or infinity(other):
        return Sameness.PROVED if infinity(one) == infinity(other) else Sameness.DIFFERENT
    number, other_number = normal.exact(one), normal.exact(other)
    if number is not None and other_number is not None:
        return Sameness.PROVED if number == other_number else Sameness.DIFFERENT
    agree = points.agree(one, other)
    if agree is None:
        return Sameness.UNKNOWN
    if not agree:
        return Sameness.DIFFERENT
    ours, theirs = normal.normal(one), normal.normal(other)
    return Sameness.PROVED if ours and theirs and normal.equal(ours, theirs) else Sameness.LIKELY


def infinity(node: Node) -> int:
    """1 and -1 for the infinities, 0 for everything else."""
    if node.kind == "negative":
        return -infinity(node.parts[0])
    return int(node.kind == "infinity")
