r"""Normal forms, which prove expressions equal in exact arithmetic, without a computer algebra system.

An expression becomes a quotient of two polynomials with rational coefficients. Their *atoms* are variables, pi, e, i,
square roots of primes and, as opaque terms, everything else (``\sin(2x)``, ``\sqrt{x+1}``, ``2^x``), named by the
normal form of their arguments. Two quotients are equal if their cross products are. For two rational constants the
comparison is always decisive.

A proof may be missed (identities of sines or logarithms are left to `algebra`), but is never wrong. What would grow too
large raises `Unreadable`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache

from distill.verifiers.tree import Node, Unreadable

Monomial = tuple[tuple[str, int], ...]
"""(atom, exponent) in the order of the atoms; no exponent is 0."""
Polynomial = Mapping[Monomial, Fraction]
Quotient = tuple[Polynomial, Polynomial]

MOST_TERMS, MOST_PRODUCTS, MOST_POWER = 60, 900, 40
MOST_BITS, MOST_FACTOR_BITS = 1 << 16, 1 << 12
"""Limits on the size of a rational constant, and of a coefficient in a polynomial."""
MOST_FACTORIAL = 5_000
MOST_ROOT = 1 << 40
SMALL_PRIMES = [n for n in range(2, 1000) if all(n % d for d in range(2, math.isqrt(n) + 1))]
ONE: Polynomial = {(): Fraction(1)}
ROOT = "√"


def equal(one: Quotient, other: Quotient) -> bool:
    """Whether two quotients are proved equal. False only means that no proof was found."""
    try:
        return _times(one[0], other[1]) == _times(other[0], one[1])
    except Unreadable:
        return False


ARITHMETIC = frozenset({"number", "sum", "negative", "product", "quotient", "power", "factorial", "binomial"})


def exact(node: Node) -> Fraction | None:
    """The value of an expression made of rational numbers alone; None for any other, or if it is too large."""
    found = normal(node) if _is_arithmetic(node) else None
    return None if found is None else rational(found)


def _is_arithmetic(node: Node) -> bool:
    return node.kind in ARITHMETIC and all(_is_arithmetic(part) for part in node.parts if isinstance(part, Node))


def proportional(one: Quotient, other: Quotient) -> bool:
    """Whether one quotient is a nonzero rational multiple of the other."""
    try:
        ours, theirs = _times(one[0], other[1]), _times(other[0], one[1])
    except Unreadable:
        return False
    if not ours or ours.keys() != theirs.keys():
        return False
    return len({ours[monomial] / theirs[monomial] for monomial in ours}) == 1


@lru_cache(maxsize=4096)
def normal(node: Node) -> Quotient | None:
    """The normal form; None if there is none of a reasonable size."""
    try:
        return _normal(node)
    except (Unreadable, OverflowError, RecursionError):
        return None


def _normal(node: Node) -> Quotient:
    if node.kind == "number":
        return _whole(Fraction(node.parts[0]))
    if node.kind == "name":
        return {((node.name, 1),): Fraction(1)}, ONE
    parts = [_normal(part) for part in node.parts]
    match node.kind:
        case "sum":
            return _added(parts[0], parts[1])
        case "negative":
            return _scaled(parts[0], -1)
        case "product":
            return _multiplied(parts[0], parts[1])
        case "quotient":
            return _multiplied(parts[0], _inverse(parts[1]))
        case "power":
            return _power(parts[0], parts[1])
        case "call" if node.name == "sqrt":
            return _square_root(parts[0])
        case "call" if node.name == "exp":
            return _power(({(("e", 1),): Fraction(1)}, ONE), parts[0])
        case "root":
            return _root(parts[0], parts[1])
        case "factorial" | "binomial" | "call" | "log":
            return _factorial_or_binomial(node.kind, parts) or _atom(f"{node.kind} {node.name}", *parts)
    raise Unreadable(f"a {node.kind} has no normal form")


def _whole(value: Fraction) -> Quotient:
    if value.numerator.bit_length() + value.denominator.bit_length() > MOST_BITS:
        raise Unreadable("a number with too many digits")
    return ({(): value} if value else {}), ONE


def rational(quotient: Quotient) -> Fraction | None:
    """The value of a quotient without atoms; None if it has any."""
    above, below = quotient
    if set(above) <= {()} and set(below) == {()}:
        return above.get((), Fraction(0)) / below[()]
    return None


def _added(one: Quotient, other: Quotient) -> Quotient:
    if one[1] == other[1]:
        return _simplified(_plus(one[0], other[0]), one[1])
    above = _plus(_times(one[0], other[1]), _times(other[0], one[1]))
    return _simplified(above, _times(one[1], other[1]))


def _multiplied(one: Quotient, other: Quotient) -> Quotient:
    return _simplified(_times(one[0], other[0]), _times(one[1], other[1]))


def _scaled(one: Quotient, by: int) -> Quotient:
    return {monomial: by * factor for monomial, factor in one[0].items()}, one[1]


def _inverse(one: Quotient) -> Quotient:
    above, below = one
    if not above:
        raise Unreadable("division by zero")
    return _simplified(below, above)


def _simplified(above: Polynomial, below: Polynomial) -> Quotient:
    """The quotient without a denominator of one term, whose atoms move above with negative exponents."""
    if len(below) != 1:
        return above, below
    ((monomial, factor),) = below.items()
    inverse = tuple((atom, -exponent) for atom, exponent in monomial)
    return _times(above, _reduced(inverse, 1 / factor)), ONE


def _power(base: Quotient, exponent: Quotient) -> Quotient:
    times = rational(exponent)
    if times is None or times.denominator > 2:
        return _atom("power", base, exponent)
    if times.denominator == 2:
        base, times = _square_root(base), 2 * times
    value = rational(base)
    if value is not None and value and abs(times) * max(_bits(value), 1) <= MOST_BITS:
        return _whole(value ** int(times))
    if abs(times) > MOST_POWER:
        return _atom("power", base, exponent)
    if times == 0 and not base[0]:
        raise Unreadable("zero to the power of zero")
    result: Quotient = (ONE, ONE)
    for _ in range(abs(int(times))):
        result = _multiplied(result, base)
    return result if times >= 0 else _inverse(result)


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _square_root(inside: Quotient) -> Quotient:
    r"""``\sqrt{-3/4}`` as i √3 / 2; the root of anything but a rational number is an atom."""
    value = rational(inside)
    if value is None:
        return _atom("call sqrt", inside)
    if value == 0:
        return _whole(Fraction(0))
    # √(a/b) = √(ab) / b, for positive a and b
    outside, left = Fraction(1, value.denominator), abs(value.numerator) * value.denominator
    if left > MOST_ROOT:
        return _atom("call sqrt", inside)
    atoms: list[str] = ["i"] if value < 0 else []
    for prime in SMALL_PRIMES:
        while left % (prime * prime) == 0:
            left //= prime * prime
            outside *= prime
        if left % prime == 0:
            left //= prime
            atoms.append(f"{ROOT}{prime}")
    root = math.isqrt(left)
    if root * root == left:
        outside *= root
    else:
        atoms.append(f"{ROOT}{left}")
    return {tuple(sorted((atom, 1) for atom in atoms)): outside}, ONE


def _root(inside: Quotient, degree: Quotient) -> Quotient:
    r"""``\sqrt[3]{-54}`` as -3 times the atom of 2; the root of anything but a rational number is an atom."""
    value, order = rational(inside), rational(degree)
    if value is None or order is None or order.denominator != 1 or not 2 < order <= MOST_POWER:
        return _square_root(inside) if order == 2 else _atom("root", inside, degree)
    n = int(order)
    # the root of a/b is that of a times b to the power of n-1, over b
    outside, left = Fraction(1, value.denominator), abs(value.numerator) * value.denominator ** (n - 1)
    if not value or left > MOST_ROOT or (value < 0 and n % 2 == 0):
        return _atom("root", inside, degree) if value else inside
    for prime in SMALL_PRIMES:
        while left % prime**n == 0:
            left //= prime**n
            outside *= prime
    of_the_rest = _whole(Fraction(1)) if left == 1 else _atom("root", _whole(Fraction(left)), degree)
    return _multiplied(_whole(outside if value > 0 else -outside), of_the_rest)


def _factorial_or_binomial(kind: str, parts: list[Quotient]) -> Quotient | None:
    """Factorials and binomial coefficients of whole numbers."""
    numbers = [rational(part) for part in parts]
    whole = [int(n) for n in numbers if n is not None and n.denominator == 1 and 0 <= n <= MOST_FACTORIAL]
    if kind == "factorial" and len(whole) == 1:
        return _whole(Fraction(math.factorial(whole[0])))
    if kind == "binomial" and len(whole) == 2:
        return _whole(Fraction(math.comb(*whole)))
    return None


def _atom(kind: str, *inside: Quotient) -> Quotient:
    """An opaque term, named by its arguments."""
    name = f"{kind}({'; '.join(_text(part) for part in inside)})"
    if len(name) > 10_000:
        raise Unreadable("an expression that grows too long")
    return {((name, 1),): Fraction(1)}, ONE


def _text(quotient: Quotient) -> str:
    return " / ".join(str(sorted((m, str(f)) for m, f in part.items())) for part in quotient)


def _plus(one: Polynomial, other: Polynomial) -> Polynomial:
    result = dict(one)
    for monomial, factor in other.items():
        _add(result, monomial, factor)
    return result


def _add(to: dict[Monomial, Fraction], monomial: Monomial, factor: Fraction) -> None:
    total = to.get(monomial, 0) + factor
    if total:
        to[monomial] = total
    else:
        to.pop(monomial, None)


def _times(one: Polynomial, other: Polynomial) -> Polynomial:
    if other == ONE:
        return one
    if max(len(one), len(other)) > MOST_TERMS or len(one) * len(other) > MOST_PRODUCTS:
        raise Unreadable("too many terms")
    most_bits = MOST_BITS if set(one) | set(other) <= {()} else MOST_FACTOR_BITS
    result: dict[Monomial, Fraction] = {}
    for monomial, factor in one.items():
        for also, by in other.items():
            exponents = dict(monomial)
            for atom, exponent in also:
                exponents[atom] = exponents.get(atom, 0) + exponent
            product = factor * by
            if _bits(product) > most_bits:
                raise Unreadable("a number with too many digits")
            for key, value in _reduced(tuple(exponents.items()), product).items():
                _add(result, key, value)
    return result


def _reduced(monomial: Monomial, factor: Fraction) -> Polynomial:
    """Apply i² = -1 and √n² = n, so that the exponent of i and of a root is 0 or 1."""
    kept = []
    for atom, exponent in monomial:
        if atom == "i":
            exponent, sign = exponent % 2, -1 if exponent % 4 in (2, 3) else 1
            factor *= sign
        elif atom.startswith(ROOT):
            exponent, squares = exponent % 2, exponent // 2
            factor *= Fraction(int(atom[1:])) ** squares
        if exponent:
            kept.append((atom, exponent))
    return {tuple(sorted(kept)): factor}
