"""Real answers beside the checkout (GSM8K, MATH-500), and many ways to write the same one.

Every rewrite here keeps the meaning by the rules of LaTeX and of plain English, without knowing how the
verifier reads. `rewrites` names each, so that a failing test says which one is not understood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

INTEGER = re.compile(r"-?\d+")
DECIMAL = re.compile(r"-?\d*\.\d+")
FRACTION = re.compile(r"(-?)\\d?frac\s?(?:\{(\d+)\}|(\d))\s?(?:\{(\d+)\}|(\d))")
NO_VALUE = re.compile(r"\\text|[=\\]in\b|=|_|\\mbox|\\\$")


def data(name: str) -> str:
    """A file beside the checkout (or beside a worktree of it); the test is skipped where it is not."""
    for parent in Path(__file__).resolve().parents:
        if (path := parent / "shared" / "data" / name).exists():
            return path.read_text()
    pytest.skip(f"{name} is not here")


def gsm8k(name: str) -> list[tuple[str, str]]:
    """(reference, solution) of every row."""
    rows = [json.loads(line) for line in data(name).splitlines()]
    return [(row["answer"].rpartition("####")[2].strip(), row["answer"]) for row in rows]


def math500() -> list[str]:
    return [row["answer"] for row in json.loads(data("math500_test.json"))]


def rewrites(answer: str) -> Iterator[tuple[str, str]]:
    """(name, whole response) of the same answer, written in other ways."""
    for name, text in spellings(answer):
        yield name, rf"Therefore it is $\boxed{{{text}}}$."
    yield "plain sentence", f"We add both sides. The answer is ${answer}$."
    yield "bold label", f"Some steps.\n\n**Answer:** ${answer}$"
    yield "display", f"Hence the result.\n\\[ {answer} \\]"
    yield "display box", f"Final answer:\n\\[\n\\boxed{{{answer}}}\n\\]"
    yield "hashes", f"Some steps with $x = 7$.\n#### {answer}"
    yield "an earlier box", rf"At first \boxed{{17/23}}. Wait, that is wrong. It is \boxed{{{answer}}}."
    yield "thinking", rf"<think>Maybe \boxed{{17/23}}?</think>So the answer is \boxed{{{answer}}}"


def spellings(answer: str) -> Iterator[tuple[str, str]]:
    """(name, LaTeX) that mean the same, whatever stands around it."""
    yield "as it is", answer
    for command in ("frac", "dfrac", "tfrac", "cfrac"):
        yield command, re.sub(r"\\[dt]?frac", rf"\\{command}", answer)
    yield "braces in fractions", FRACTION.sub(lambda m: f"{m[1]}\\frac{{{m[2] or m[3]}}}{{{m[4] or m[5]}}}", answer)
    yield "left and right", re.sub(r"(?<!\\left)\(", r"\\left(", re.sub(r"(?<!\\right)\)", r"\\right)", answer))
    yield "no left, no right", re.sub(r"\\(?:left|right)", "", answer)
    yield "big brackets", re.sub(r"(?<!\\left)\(", r"\\bigl(", re.sub(r"(?<!\\right)\)", r"\\bigr)", answer))
    yield "spaces outside", f"  {answer} "
    yield "thin spaces outside", rf"\,{answer}\;"
    yield "thin spaces after commas", re.sub(r",(?!\\)\s*(?!\d{3}(?!\d))", r",\\, ", answer)
    yield "spaces around signs", re.sub(r"(?<=[\w}])\s*([-+=])\s*(?=[\w\\])", r" \1 ", answer)
    yield "full stop inside", f"{answer}."
    yield "dollars inside", f"${answer}$"
    yield "extra braces", f"{{{answer}}}"
    yield "displaystyle", rf"\displaystyle {answer}"
    yield "unicode", unicode(answer)
    yield "explicit product", re.sub(r"(?<=\d)\s*(?=\\(?:sqrt|pi))", r" \\cdot ", answer)
    yield "roots in braces", re.sub(r"\\sqrt(\d)", r"\\sqrt{\1}", answer)
    yield "matrix brackets", answer.replace("pmatrix", "bmatrix")
    yield from numbers(answer)
    yield from units(answer)
    yield from lists(answer)
    yield from equations(answer)


def unicode(answer: str) -> str:
    for latex, sign in (
        (r"\\pi(?![a-z])\s?", "π"),
        (r"\^\\circ", "°"),
        (r"\\infty", "∞"),
        (r"\\cup", "∪"),
        (r"\\pm", "±"),
    ):
        answer = re.sub(latex, sign, answer)
    return re.sub(r"^-", "−", answer)


def numbers(answer: str) -> Iterator[tuple[str, str]]:
    """Integers, decimals and fractions in each other's form."""
    if INTEGER.fullmatch(answer):
        yield "point zero", f"{answer}.0"
        yield "over one", rf"\frac{{{answer}}}{{1}}"
        yield "in bold", rf"\mathbf{{{answer}}}"
        if len(answer.strip("-")) > 3:
            for name, comma in (
                ("commas", ","),
                ("braced commas", "{,}"),
                ("thin spaces", r"\,"),
                ("negative", r",\!"),
            ):
                yield f"thousands: {name}", f"{int(answer):,}".replace(",", comma)
    if DECIMAL.fullmatch(answer):
        value = Fraction(answer if not answer.startswith(".") else f"0{answer}")
        yield "leading zero", re.sub(r"^(-?)\.", r"\g<1>0.", answer)
        yield "no leading zero", re.sub(r"^(-?)0\.", r"\1.", answer)
        yield "trailing zero", f"{answer}0"
        yield "a fraction", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    if found := FRACTION.fullmatch(answer):
        top, bottom = int(found[2] or found[3]), int(found[4] or found[5])
        yield "slash", f"{found[1]}{top}/{bottom}"
        yield "not reduced", rf"{found[1]}\frac{{{3 * top}}}{{{3 * bottom}}}"
        if found[1]:
            yield "sign above", rf"\frac{{-{top}}}{{{bottom}}}"
        if 10**6 % bottom == 0:
            decimal = f"{top * 10**6 // bottom:07d}"
            yield "a decimal", f"{found[1]}{decimal[:-6]}.{decimal[-6:]}".rstrip("0")
        if top > bottom and not found[1]:
            yield "mixed number", rf"{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}"


def units(answer: str) -> Iterator[tuple[str, str]]:
    if INTEGER.fullmatch(answer) or DECIMAL.fullmatch(answer) or FRACTION.fullmatch(answer):
        for unit in (r"\text{ cm}", r"\text{ square units}", r"~\text{students}", r"\ \mathrm{cm}^2", " meters"):
            yield f"unit {unit}", answer + unit
    if r"^\circ" in answer:
        for degrees in (r"^{\circ}", "°", r"\degree", r"\text{ degrees}", " degrees", ""):
            yield f"degrees as {degrees!r}", answer.replace(r"^\circ", degrees)
    if answer.startswith(r"\$"):
        number = answer.removeprefix(r"\$")
        for name, text in (("bare", number), ("$", f"${number}"), ("dollars", rf"{number}\text{{ dollars}}")):
            yield f"money: {name}", text


def lists(answer: str) -> Iterator[tuple[str, str]]:
    """Sets, lists and unions in another order."""
    bare = re.fullmatch(r"[^()\[\]{}=]*,(?!\d{3}\b|\\!)[^()\[\]{}=]*", answer)
    if bare:
        members = [member.strip() for member in answer.split(",")]
        yield "the list reversed", ", ".join(members[::-1])
        yield "the list in braces", rf"\{{{answer}\}}"
        yield "joined by and", r" \text{ and } ".join(members)
        yield "joined by or", " or ".join(f"x = {member}" for member in members)
    if r"\cup" in answer:
        yield "the union reversed", r" \cup ".join(answer.split(r"\cup")[::-1])


def equations(answer: str) -> Iterator[tuple[str, str]]:
    if not NO_VALUE.search(answer):
        name = "x" if "x" not in answer else "y"
        yield "x equals", f"{name} = {answer}"
        yield "f of x equals", f"f(x) = {answer}"
    if found := re.fullmatch(r"([a-z]) ?= ?(.*)", answer):
        yield "the value alone", found[2]
        yield "turned round", f"{found[2]} = {found[1]}"
