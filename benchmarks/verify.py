"""The math verifier against math-verify alone: answers judged per CPU-second, alternating in one run.

Both get the same (reference, response) pairs, right ones and wrong ones. Each response is some sentences with the
answer at the end. Ours is a `VerifierPool` as the verify stage uses it: a new pool each time with one worker, including
its start and the import of algebra (CPU-seconds of child processes count). The peer is math-verify's parse of the
reference, parse of the response and verify, in this process and already imported. The verdicts of the first repeat are
compared too: every pair on which the two differ is listed under ``differences``, with its kind and both verdicts.

math-verify caches the texts that it has parsed, and so does ours. Nearly every answer here is therefore different.

    python benchmarks/verify.py [--quick] [--math500 FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import random
import resource
import statistics
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from distill.types import Outcome, Problem
from distill.verifiers import VerifierPool

Pair = tuple[str, str, str]
"""(kind, reference, response)"""
STEPS = (
    "First we write down what is given. There are {a} of the one kind and {b} of the other. "
    "Adding $x + {a} = {b}$ to both sides, we get $x = {c}$. That is not yet what was asked for. "
    "Now we use the second condition, which says that the two together are at most {c}; substituting, we find "
    "that only one of the cases is possible. Checking it with the values above confirms this.\n\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a mix of 600, one repeat")
    parser.add_argument("--math500", type=Path, help="MATH-500 as JSON; found beside the checkout if it is there")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")

    rows, repeats = (600, 1) if arguments.quick else (3_000, 3)
    answers = math500(arguments.math500)
    ratios: dict[str, float] = {}
    detail: dict[str, Any] = {"rows": rows, "math500": len(answers)}
    theirs([("warm", "1", r"\\boxed{1}")])  # imports
    for name, pairs in (("mix", mix(rows, answers)), ("integers", integers(5 * rows))):
        ratios[name], detail[name] = compare(pairs, repeats)
        print(f"{name}: {detail[name]['rates']}", flush=True)
    print(json.dumps({"benchmark": "verify", "ratios": ratios, "detail": detail}))


def math500(path: Path | None) -> list[str]:
    """The answers of MATH-500, from the file named or from shared/data beside the checkout; none if there is none."""
    parents = Path(__file__).resolve().parents
    places = [path] if path else [parent / "shared" / "data" / "math500_test.json" for parent in parents]
    found = next((place for place in places if place.exists()), None)
    return [row["answer"] for row in json.loads(found.read_text())] if found else []


def integers(rows: int) -> list[Pair]:
    """Pairs as in GSM8K: the reference is an integer, which the response gives with or without thousands separators."""
    draw = random.Random("integers")
    pairs = []
    for _ in range(rows):
        value = draw.randrange(1, 20_000)
        said = value if draw.random() < 0.6 else value + draw.randrange(1, 50)
        pairs.append(("integer", str(value), response(draw, draw.choice((f"{said}", f"{said:,}")))))
    return pairs


def mix(rows: int, answers: list[str]) -> list[Pair]:
    """A sixth each of integers, decimals, fractions, LaTeX expressions, sets, and MATH-500 answers if there are any."""
    draw = random.Random("mix")
    kinds: dict[str, Callable[[random.Random], tuple[str, str, str]]] = {
        "integer": an_integer,
        "decimal": a_decimal,
        "fraction": a_fraction,
        "expression": an_expression,
        "set": a_set,
    }
    pairs: list[Pair] = []
    for _ in range(rows):
        kind = draw.choice([*kinds, *(["math500"] if answers else [])])
        if kind == "math500":
            reference = draw.choice(answers)
            right, wrong = draw.choice((reference, respelled(reference))), draw.choice(answers)
        else:
            reference, right, wrong = kinds[kind](draw)
        pairs.append((kind, reference, response(draw, right if draw.random() < 0.6 else wrong)))
    return pairs


def response(draw: random.Random, answer: str) -> str:
    steps = STEPS.format(a=draw.randrange(2, 99), b=draw.randrange(2, 99), c=draw.randrange(2, 99))
    return steps + rf"So the final answer is $\boxed{{{answer}}}$."


def respelled(answer: str) -> str:
    answer = answer.replace(r"\frac{", r"\dfrac{").replace(r"\left", "").replace(r"\right", "")
    return answer.replace("(", r"\left(").replace(")", r"\right)")


def an_integer(draw: random.Random) -> tuple[str, str, str]:
    value = draw.randrange(-999, 100_000)
    return str(value), draw.choice((f"{value}", f"{value:,}", f"{value}.0")), str(value + draw.randrange(1, 99))


def a_decimal(draw: random.Random) -> tuple[str, str, str]:
    value = Fraction(draw.randrange(1, 10_000) * 2 + 1, 1000)
    text = f"{float(value):.3f}"
    wrong = f"{float(value) + draw.randrange(1, 9) / 10:.3f}"
    return text, draw.choice((text, text + "0", rf"\frac{{{value.numerator}}}{{{value.denominator}}}")), wrong


def a_fraction(draw: random.Random) -> tuple[str, str, str]:
    top, bottom, times = draw.randrange(1, 99), draw.randrange(2, 99), draw.randrange(2, 9)
    right = draw.choice(
        (rf"\dfrac{{{top}}}{{{bottom}}}", f"{top}/{bottom}", rf"\frac{{{top * times}}}{{{bottom * times}}}")
    )
    return rf"\frac{{{top}}}{{{bottom}}}", right, rf"\frac{{{top + draw.randrange(1, 9)}}}{{{bottom}}}"


def an_expression(draw: random.Random) -> tuple[str, str, str]:
    a, b, c = (draw.randrange(2, 30) for _ in range(3))
    x = draw.choice("xyzabtn")
    return draw.choice(
        (
            (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"{a + 1}\sqrt{{{b}}}"),
            (rf"({x}+{a})({x}-{b})", rf"{x}^2 + {a - b}{x} - {a * b}".replace("+ -", "- "), rf"{x}^2 - {a * b}"),
            (rf"{a}\pi + {b}", rf"{b} + {a}\pi", rf"{a}\pi - {b}"),
            (
                rf"\frac{{{a}{x}+{b}}}{{{c}}}",
                rf"\frac{{{b}}}{{{c}}} + \frac{{{a}}}{{{c}}}{x}",
                rf"\frac{{{a}{x}}}{{{c}}}",
            ),
            (rf"\sin {a}{x}", rf"2\sin\frac{{{a}{x}}}{{2}}\cos\frac{{{a}{x}}}{{2}}", rf"\cos {a}{x}"),
            (
                rf"\frac{{1}}{{{a}+\sqrt{{{b}}}}}",
                rf"\frac{{{a}-\sqrt{{{b}}}}}{{{a * a - b}}}",
                rf"\frac{{1}}{{{a}-\sqrt{{{b}}}}}",
            ),
            (rf"e^{{{a}}} - {b}", rf"-{b} + e^{{{a}}}", rf"e^{{{a}}} + {b}"),
            (rf"{a} - {b}i", rf"-{b}i + {a}", rf"{a} + {b}i"),
        )
    )


def a_set(draw: random.Random) -> tuple[str, str, str]:
    a, b, c = sorted(draw.sample(range(-40, 40), 3))
    return draw.choice(
        (
            (rf"\{{{a}, {b}, {c}\}}", rf"\{{{c}, {a}, {b}\}}", rf"\{{{a}, {b}\}}"),
            (f"{a}, {c}", f"{c}, {a}", f"{b}, {c}"),
            (f"({a}, {c}]", rf"\left({a}, {c}\right]", f"[{a}, {c}]"),
            (
                rf"(-\infty, {a}) \cup ({b}, \infty)",
                rf"({b}, \infty) \cup (-\infty, {a})",
                rf"(-\infty, {a}] \cup ({b}, \infty)",
            ),
            (f"({a}, {b}, {c})", rf"\left( {a}, {b}, {c} \right)", f"({c}, {b}, {a})"),
        )
    )


def ours(pairs: list[Pair]) -> list[str]:
    items = [
        (i, "math", Problem("p", "?", reference, "math", "bench"), text) for i, (_, reference, text) in enumerate(pairs)
    ]
    with VerifierPool(workers=1) as pool:
        verdicts = dict(pool.verify_many(items))
    return [str(verdicts[i].outcome) for i in range(len(pairs))]


def theirs(pairs: list[Pair]) -> list[str]:
    from math_verify import parse, verify

    return [
        str(Outcome.CORRECT if verify(parse(f"${reference}$"), parse(text)) else Outcome.INCORRECT)
        for _, reference, text in pairs
    ]


def cpu_seconds() -> float:
    """The CPU-seconds of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def compare(pairs: list[Pair], repeats: int) -> tuple[float, dict[str, Any]]:
    """The ratio of median rates (above 1: ours is faster), both rates, and where the verdicts differ."""
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    verdicts: dict[str, list[str]] = {}
    for repeat in range(repeats):
        mine = fresh(pairs, repeat)
        for side, run in (("ours", ours), ("theirs", theirs)):
            gc.collect()
            gc.freeze()  # so that neither side's collections have to scan the other's leftovers
            begun = cpu_seconds()
            found = run(mine)
            seconds[side].append(cpu_seconds() - begun)
            verdicts.setdefault(side, found)
            assert verdicts[side] == found
    rates = {side: round(len(pairs) / statistics.median(times)) for side, times in seconds.items()}
    both = zip(pairs, verdicts["ours"], verdicts["theirs"], strict=True)
    differences = [
        {"kind": kind, "reference": reference, "answer": text.rpartition("answer is ")[2], "ours": one, "theirs": other}
        for (kind, reference, text), one, other in both
        if one != other
    ]
    counts = {outcome: verdicts["ours"].count(outcome) for outcome in map(str, Outcome)}
    return round(rates["ours"] / rates["theirs"], 1), {"rates": rates, "ours": counts, "differences": differences}


def fresh(pairs: list[Pair], repeat: int) -> list[Pair]:
    """The same pairs with different first words in each repeat, so that no cache of responses helps."""
    return [(kind, reference, f"Attempt {repeat}. {text}") for kind, reference, text in pairs]


if __name__ == "__main__":
    main()
