r"""Compare what two parsed answers mean: structures here, values in `equality`, equations in `relations`.

    PROVED      equal in exact arithmetic (`normal`), part by part
    LIKELY      equal at random points (`points`)
    DIFFERENT   a clear difference in a part that must be equal
    UNKNOWN     neither can be shown: different kinds of object, or a part without a value

Sets and unions are unordered, tuples are ordered. A list without braces is a multiset of answers. ``x = 5`` equals 5 if
the other side names nothing; ``2x = 10`` does not. A vector equals the same row, column or tuple.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from distill.verifiers.equality import Sameness, same_value
from distill.verifiers.relations import assigned, interval, same_relation
from distill.verifiers.tree import Node

MOST_MEMBERS = 50
STRUCTURES = frozenset({"tuple", "matrix", "row", "union", "relation", "set", "ratio"})
DIFFERENT, UNKNOWN, LIKELY, PROVED = Sameness


def same(one: Node, other: Node) -> Sameness:
    """How certain it is that two trees mean the same. Symmetric."""
    if one == other and not has_sign(one):
        # A value may still be undefined; then nothing is known.
        return same_value(one, other) if one.kind not in STRUCTURES else PROVED
    ours, theirs = assigned(one), assigned(other)
    if ours and theirs:
        return _same_assignments(ours, theirs, one, other)
    if ours or theirs:
        return _same_assigned(ours, other, one) if ours else _same_assigned(theirs, one, other)
    if _has_relation(one) or _has_relation(other):
        return _with_relations(one, other)
    return _same_object(one, other)


def _has_relation(node: Node) -> bool:
    return node.kind == "relation" or (node.kind == "set" and any(part.kind == "relation" for part in node.parts))


def _same_assignments(ours: dict[str, Node], theirs: dict[str, Node], one: Node, other: Node) -> Sameness:
    if ours.keys() == theirs.keys():
        return min(same(ours[name], theirs[name]) for name in ours)
    if one.kind == other.kind == "relation" and one.name == other.name == "=":
        # "y = 2x" and "x = y/2" are one equation; "x = 5" and "n = 5" may be two names for one number.
        values = same(*ours.values(), *theirs.values())
        return max(same_relation(one, other), min(values, UNKNOWN))
    return UNKNOWN


def _same_assigned(ours: dict[str, Node], other: Node, whole: Node) -> Sameness:
    """Compare names with values against something that names nothing, or against another relation."""
    if _has_relation(other):
        if whole.name == "in" and (known := interval(other)) and set(ours) == _variables_of(other):
            return same(next(iter(ours.values())), known)
        if whole.kind == other.kind == "relation" and whole.name == other.name == "=":
            return same_relation(whole, other)
        return UNKNOWN
    if len(ours) == 1:
        return same(next(iter(ours.values())), other)
    found = _same_members(list(ours.values()), list(_members(other)) if other.kind != "tuple" else list(other.parts))
    in_order = [*ours] == sorted(ours) and other.kind == "tuple" and len(other.parts) == len(ours)
    if found >= LIKELY and in_order:
        return max(UNKNOWN, min(same(a, b) for a, b in zip(ours.values(), other.parts, strict=True)))
    return min(found, UNKNOWN)


def _with_relations(one: Node, other: Node) -> Sameness:
    ours, theirs = interval(one), interval(other)
    if ours and theirs:
        return same(ours, theirs) if _variables_of(one) == _variables_of(other) else UNKNOWN
    if ours or theirs:
        known, rest = (ours, other) if ours else (theirs, one)
        assert known is not None
        return UNKNOWN if _has_relation(rest) else same(known, rest)
    if one.kind == other.kind == "relation":
        return same_relation(one, other)
    equation, value = (one, other) if one.kind == "relation" else (other, one)
    # An unsolved equation does not claim its right side, so equality with it shows nothing; a difference still counts.
    if _has_relation(value) or equation.kind == "set":
        return UNKNOWN
    return min(UNKNOWN, max(same(side, value) for side in equation.parts))


def _variables_of(node: Node) -> set[str]:
    if node.kind == "name":
        return {node.name}
    return set().union(*(_variables_of(part) for part in node.parts if isinstance(part, Node)))


def _same_object(one: Node, other: Node) -> Sameness:
    one, other = _merged(one), _merged(other)
    if {one.kind, other.kind} == {"set", "tuple"}:
        ordered, unordered = (one, other) if one.kind == "tuple" else (other, one)
        if unordered.name == "{}" and len(unordered.parts) == 1:
            return same(ordered, unordered.parts[0])
        return min(UNKNOWN, _same_members(_members(unordered), list(ordered.parts)))
    if "set" in (one.kind, other.kind) or has_sign(one) or has_sign(other):
        found = _same_set(one, other)
        return min(found, UNKNOWN) if _has_free_signs(one) or _has_free_signs(other) else found
    if one.kind == other.kind == "union":
        return _same_members(list(one.parts), list(other.parts))
    if "ratio" in (one.kind, other.kind):
        return _same_ratio(one, other)
    if {one.kind, other.kind} & STRUCTURES and (_calculated(one) or _calculated(other)):
        return UNKNOWN
    if "matrix" in (one.kind, other.kind) and (one.kind != other.kind or _shape(one) != _shape(other)):
        return _same_vector(one, other)
    if one.kind in STRUCTURES or other.kind in STRUCTURES:
        if one.kind == other.kind == "tuple" and len(one.parts) > 2 and {one.name, other.name} == {"()", "[]"}:
            return _same_vector(one, other)
        if (one.kind, one.name, len(one.parts)) != (other.kind, other.name, len(other.parts)):
            # A union of intervals may be one interval, (0, 1] and [1, 2); it is never a number.
            return UNKNOWN if {one.kind, other.kind} == {"union", "tuple"} else DIFFERENT
        return min(same(a, b) for a, b in zip(one.parts, other.parts, strict=True))
    return same_value(one, other)


def _calculated(node: Node) -> bool:
    """Whether a structure would have to be calculated, or is only named: ``2(1, 3)``, ``P(1, 3)``, ``2i + 3j``."""
    if node.kind in STRUCTURES:
        return False
    names = _variables_of(node)
    return _has_structure(node) or (len(names) > 1 and names <= {"i", "j", "k"})


def _has_structure(node: Node) -> bool:
    return node.kind in STRUCTURES or any(_has_structure(part) for part in node.parts if isinstance(part, Node))


def _merged(node: Node) -> Node:
    """A union of sets as the set of all their members."""
    if node.kind == "union" and all(part.kind == "set" for part in node.parts):
        return Node("set", tuple(member for part in node.parts for member in part.parts), "{}")
    return node


def _same_ratio(one: Node, other: Node) -> Sameness:
    """3:4 equals 6:8, and three quarters; 1:2:3 is not a number."""
    if one.kind == other.kind:
        if len(one.parts) != len(other.parts):
            return DIFFERENT
        crossed = zip(one.parts[1:], other.parts[1:], strict=True)
        products = [(Node("product", (a, other.parts[0])), Node("product", (b, one.parts[0]))) for a, b in crossed]
        return min(same_value(a, b) for a, b in products)
    ratio, value = (one, other) if one.kind == "ratio" else (other, one)
    if len(ratio.parts) != 2 or value.kind in STRUCTURES:
        return UNKNOWN
    return same_value(Node("quotient", ratio.parts), value)


def _shape(matrix: Node) -> list[int]:
    return [len(row.parts) for row in matrix.parts]


def _same_vector(one: Node, other: Node) -> Sameness:
    if {one.kind, other.kind} - {"matrix", "tuple"}:
        return DIFFERENT
    ours, theirs = _components(one), _components(other)
    if ours is None or theirs is None:
        return DIFFERENT if one.kind == other.kind else UNKNOWN
    if len(ours) != len(theirs):
        return DIFFERENT
    found = min(same(a, b) for a, b in zip(ours, theirs, strict=True))
    # A row and a column may be meant as the same vector, or as different matrices.
    return min(found, UNKNOWN) if one.kind == other.kind else found


def _components(node: Node) -> Sequence[Node] | None:
    if node.kind == "tuple":
        return node.parts if node.name in ("()", "[]") else None
    if node.kind != "matrix":
        return None
    if len(node.parts) == 1:
        return node.parts[0].parts
    return [row.parts[0] for row in node.parts] if set(_shape(node)) == {1} else None


def _members(node: Node) -> list[Node]:
    """The members of a set or list, with both values of a plus-minus; anything else is its own only member."""
    if node.kind == "set":
        return [member for part in node.parts for member in (_members(part) if _opens(part) else [part])]
    return [_signed(node, "+"), _signed(node, "-")] if has_sign(node) else [node]


def _opens(part: Node) -> bool:
    return (part.kind == "set" and not part.name) or (part.kind != "set" and has_sign(part))


def has_sign(node: Node) -> bool:
    """Whether a value in it has both signs."""
    return node.kind == "plusminus" or any(has_sign(part) for part in node.parts if isinstance(part, Node))


def _has_free_signs(node: Node) -> bool:
    r"""Whether one value has several signs, which may or may not go together (``\pm 1 \pm 2``)."""
    if _opens(node):
        return any(_has_free_signs(part) for part in node.parts) if node.kind == "set" else _signs(node)["+"] > 1
    return False


def _signs(node: Node) -> Counter[str]:
    own = Counter([node.name] if node.kind == "plusminus" else [])
    return sum((_signs(part) for part in node.parts if isinstance(part, Node)), own)


def _signed(node: Node, sign: str) -> Node:
    """The tree with plus-minus replaced by ``sign``, and minus-plus by the opposite sign."""
    parts = tuple(_signed(part, sign) if isinstance(part, Node) else part for part in node.parts)
    if node.kind != "plusminus":
        return Node(node.kind, parts, node.name)
    return Node("sum", parts if node.name == sign else (parts[0], Node("negative", (parts[1],))))


def _same_set(one: Node, other: Node) -> Sameness:
    ours, theirs = _members(one), _members(other)
    if len(ours) == len(theirs):
        return _same_members(ours, theirs)
    if max(len(ours), len(theirs)) > MOST_MEMBERS or not ours or not theirs:
        return UNKNOWN if max(len(ours), len(theirs)) > MOST_MEMBERS else DIFFERENT
    if any(member.kind in STRUCTURES for member in ours + theirs):
        return UNKNOWN
    distinct = _same_members(_distinct(ours), _distinct(theirs))
    both_braced = one.name == other.name == "{}"
    return distinct if both_braced or distinct == DIFFERENT else UNKNOWN


def _distinct(members: list[Node]) -> list[Node]:
    kept: list[Node] = []
    for member in members:
        if not any(same(member, other) >= LIKELY for other in kept):
            kept.append(member)
    return kept


def _same_members(ours: list[Node], theirs: list[Node]) -> Sameness:
    """Compare two lists of members, in any order."""
    if len(ours) != len(theirs):
        return DIFFERENT
    in_order = min((same(a, b) for a, b in zip(ours, theirs, strict=True)), default=PROVED)
    if in_order >= LIKELY or len(ours) == 1:
        return in_order
    if len(ours) > MOST_MEMBERS:
        return UNKNOWN
    left, least = list(theirs), PROVED
    for one in ours:
        answers = [same(one, other) for other in left]
        best = max(answers)
        if best == DIFFERENT:
            return DIFFERENT
        if best >= LIKELY:
            del left[answers.index(best)]
        least = min(least, best)
    return least
