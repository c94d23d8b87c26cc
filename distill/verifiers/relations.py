r"""Equations and inequalities: what they assign, which interval they describe, whether two are equivalent.

An equation that is solved for a name (``x = 5``, ``f(x) = 2x``, ``n = 2, 3``) *assigns* it. Other equations are
compared up to a constant factor, and shown to differ at solutions of one of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from distill.verifiers import normal, points
from distill.verifiers.equality import Sameness, same_value
from distill.verifiers.tree import Node, Unreadable

FUNCTION_NAMES = frozenset("fghpqFGHPQ")
INFINITY = Node("infinity")
MINUS_INFINITY = Node("negative", (INFINITY,))
STEPS, LARGEST_ROOT, RATIO = 40, 1e3, 1e-9
MOST_UNKNOWNS = 6
"""An equation is solved for at most this many of its variables, which bounds the time."""
KINDS = frozenset({"tuple", "matrix", "set", "union"})
TURNED = str.maketrans("<>", "><")


def assigned(node: Node) -> dict[str, Node]:
    """The value assigned to each name, in the order written; empty if the node assigns nothing.

    Several values of one name (``x = 1, x = 2`` and ``x = 1, 2``) become a set.
    """
    if node.kind == "relation":
        name, value = _assignment(node)
        return {name: value} if name else {}
    if node.kind not in ("set", "tuple") or node.name == "{}" or not node.parts:
        return {}
    found: dict[str, list[Node]] = {}
    name = ""
    for part in node.parts:
        new, value = _assignment(part) if part.kind == "relation" else (name, part)
        if not new or (part.kind != "relation" and len(found) > 1):
            return {}
        name = new
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else Node("set", tuple(values)) for name, values in found.items()}


def _assignment(node: Node) -> tuple[str, Node]:
    """("x", 5) for ``x = 5``, ``5 = x`` and ``x = 2 + 3 = 5``; an empty name if it is not an assignment."""
    if set(node.name.split()) not in ({"="}, {"in"}):
        return "", node
    first, *_, last = node.parts
    if not _name(first) and len(node.parts) == 2 and node.name == "=":
        first, last = last, first
    steps_hold = all(same_value(step, last) != Sameness.DIFFERENT for step in node.parts[1:-1])
    if not steps_hold or (first.kind == "name" and first.name in points.variables(last)):
        return "", node
    return _name(first), last


def _name(node: Node) -> str:
    """The name on the left side of a solved equation: ``x``, or ``f(x)``; empty if it is neither."""
    if node.kind == "name" and node.name not in points.CONSTANTS:
        return node.name
    called = node.kind == "product" and all(part.kind == "name" for part in node.parts)
    return "{}({})".format(*(part.name for part in node.parts)) if called and _is_function(node.parts[0]) else ""


def _is_function(node: Node) -> bool:
    return node.name[:1] in FUNCTION_NAMES


def claimed(node: Node) -> Node:
    """The value that an equation claims: 42 in ``12 + 30 = 42``, 5 in ``x + y = 5``. ``2x = 10`` is left as it is."""
    return _right_side(node) or node


def _right_side(node: Node) -> Node | None:
    if node.kind != "relation" or set(node.name.split()) != {"="} or assigned(node):
        return None
    *left, right = node.parts
    names = set().union(*(points.variables(part) for part in left))
    if names and (len(names) == 1 or points.variables(right)):
        return None
    holds = names or all(part.kind == right.kind or right.kind not in KINDS for part in left)
    holds = holds and (names or all(same_value(part, right) != Sameness.DIFFERENT for part in left))
    return right if holds else None


def interval(node: Node) -> Node | None:
    """``2 < x \\le 3`` as (2, 3]; a list of inequalities as the union of their intervals; None for anything else."""
    if node.kind == "set" and node.name != "{}" and node.parts:
        known = [found for part in node.parts if (found := interval(part)) is not None]
        return Node("union", tuple(known)) if len(known) == len(node.parts) and len(_all_names(node)) == 1 else None
    if node.kind != "relation" or not set(node.name) & set("<>!"):
        return None
    parts, signs = node.parts, node.name.split()
    if signs[0].startswith(">"):
        parts, signs = parts[::-1], [sign.replace(">", "<") for sign in signs[::-1]]
    at = next((i for i, part in enumerate(parts) if part.kind == "name" and part.name not in points.CONSTANTS), None)
    if at is None or len(_all_names(node)) != 1 or points.variables(parts[at]) & _names_but(parts, at):
        return None
    if signs == ["!="]:
        (hole,) = (part for i, part in enumerate(parts) if i != at)
        return Node("union", (_tuple(MINUS_INFINITY, hole, "()"), _tuple(hole, INFINITY, "()")))
    if not set(signs) <= {"<", "<="} or len(parts) - at > 2 or at > 1:
        return None
    low, high = parts[at - 1] if at else MINUS_INFINITY, parts[at + 1] if at + 1 < len(parts) else INFINITY
    left = "[" if at and signs[at - 1] == "<=" else "("
    right = "]" if at + 1 < len(parts) and signs[at] == "<=" else ")"
    return _tuple(low, high, left + right)


def _tuple(low: Node, high: Node, brackets: str) -> Node:
    return Node("tuple", (low, high), brackets)


def _names_but(parts: Iterable[Node], at: int) -> set[str]:
    return set().union(*(points.variables(part) for i, part in enumerate(parts) if i != at))


def _all_names(node: Node) -> set[str]:
    """The names that the inequalities in a node are about."""
    relations = node.parts if node.kind == "set" else (node,)
    return {part.name for relation in relations for part in relation.parts if part.kind == "name"} - {"e", "i", "pi"}


def same_relation(one: Node, other: Node) -> Sameness:
    """Compare two equations or inequalities as such, not by what they assign."""
    if len(one.parts) != 2 or len(other.parts) != 2:
        return _same_chain(one, other)
    (sign, difference), (other_sign, other_difference) = _difference(one), _difference(other)
    if sign != other_sign:
        return Sameness.DIFFERENT if {sign, other_sign} <= {"<", "<="} else Sameness.UNKNOWN
    factor = _factor(difference, other_difference)
    if factor is not None and sign.startswith("<") and not factor > 0:
        return Sameness.DIFFERENT
    if factor is not None:
        ours, theirs = normal.normal(difference), normal.normal(other_difference)
        return Sameness.PROVED if ours and theirs and normal.proportional(ours, theirs) else Sameness.LIKELY
    if sign != "=":
        return Sameness.UNKNOWN
    return min(_solves(difference, other_difference), _solves(other_difference, difference))


def _same_chain(one: Node, other: Node) -> Sameness:
    """Compare two chains such as ``a < b < c``: the same signs between the same values, from either end."""
    signs = one.name.split()
    ways = (
        (other.parts, other.name.split()),
        (other.parts[::-1], [sign.translate(TURNED) for sign in other.name.split()[::-1]]),
    )
    for parts, other_signs in ways:
        if signs == other_signs:
            found = min(same_value(a, b) for a, b in zip(one.parts, parts, strict=True))
            if found >= Sameness.LIKELY:
                return found
    return Sameness.UNKNOWN


def _difference(node: Node) -> tuple[str, Node]:
    """(sign, right minus left), with the smaller side on the left."""
    low, high = node.parts
    if ">" in node.name:
        low, high = high, low
    return node.name.replace(">", "<"), Node("sum", (high, Node("negative", (low,))))


def _factor(one: Node, other: Node) -> float | None:
    """The constant by which one is a multiple of the other at all points; None if there is none."""
    ours, theirs = points.values(one), points.values(other)
    if ours is None or theirs is None or any(value.value == 0 for value in theirs):
        return None
    ratios = [a.value / b.value for a, b in zip(ours, theirs, strict=True)]
    steady = all(abs(ratio - ratios[0]) <= RATIO * abs(ratios[0]) for ratio in ratios)
    return ratios[0].real if steady and ratios[0] and abs(ratios[0].imag) < RATIO * abs(ratios[0]) else None


def _solves(one: Node, other: Node) -> Sameness:
    """Whether solutions of ``one = 0`` solve ``other = 0``, tested at the points, in one variable at a time."""
    tried = 0
    for name in sorted(points.variables(one))[:MOST_UNKNOWNS]:
        for point in range(points.POINTS):
            root = _root(one, name, point)
            if root is None:
                continue
            try:
                value = points.evaluate(other, points.Where(point, moved=(name, root)))
                beside = points.evaluate(other, points.Where(point, moved=(name, root + 1e-3)))
            except Unreadable:
                continue
            tried += 1
            if abs(value.value) > max(1e-5 * abs(beside.value), 1e-5):
                return Sameness.DIFFERENT
    return Sameness.LIKELY if tried >= points.POINTS else Sameness.UNKNOWN


def _root(node: Node, name: str, point: int) -> float | None:
    """A real root in one variable, by the secant method, starting at the variable's value at the point."""

    def value(at: float) -> float:
        found = points.evaluate(node, points.Where(point, moved=(name, at))).value
        if found.imag:
            raise Unreadable("not real")
        return found.real

    before = points.Where(point).variable(name)
    now = before + 0.1
    try:
        left, here = value(before), value(now)
        for _ in range(STEPS):
            if here == left or abs(now - before) <= 1e-13 * abs(now):
                break
            before, left, now = now, here, now - here * (now - before) / (here - left)
            here = value(now)
    except (Unreadable, OverflowError, ZeroDivisionError):
        return None
    return now if abs(here) <= 1e-10 and abs(now) < LARGEST_ROOT else None
