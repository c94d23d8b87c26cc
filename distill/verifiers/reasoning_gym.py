r"""`reasoning_gym`: the puzzle families of reasoning-gym, judged by the library's own scorers (extra `reasoning-gym`).

The reference is JSON: ``{"dataset": name, "entry": {question, answer, metadata}, "config": {...}}``, made by
`reference_of`, which distinguishes tuples from lists because some scorers do. The score is the scorer's. An answer
that reaches ``threshold`` (1.0) is correct; below it, the partial score stays in the verdict.

A scorer is trusted with an entry only if it gives the entry's own answer full marks and a nonsense answer none
(`_fault`). Otherwise, or if the scorer raises, the verdict is `unverifiable`. Several scorers hand the answer to
Python's ``eval``, some through sympy: they are shown only plain data or plain arithmetic (`EVALUATED`). Six accept
wrong answers (`refused`). An answer that is withheld from its scorer is incorrect.

The text that is judged is the last ``<answer>...</answer>`` or box, what follows the last "answer:", or the whole
answer. The first use imports the library, which takes seconds: run it in the pool.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

from distill.thinking import Response
from distill.types import Outcome, Problem, Verdict
from distill.verifiers.extract import MARKER, last_box
from distill.verifiers.extras import installed
from distill.verifiers.number import canonical, read_number
from pipeline.errors import InputError

INSTALL = "needs the library: pip install 'distill-reasoning[reasoning-gym]'"
MAX_LENGTH = 20_000
MAX_REFERENCE = 2_000_000
MAX_EXPRESSION = 500
MAX_POWER = 100
NONSENSE = "qwzx ~ nonsense ~ qwzx"

EVALUATED = {
    **dict.fromkeys(("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"), "data"),
    **dict.fromkeys(
        ("countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"),
        "arithmetic",
    ),
}
"""Data sets whose scorers evaluate the answer as code, and what it may be. A test compares this with the library."""
TRUSTED_ENTRIES = {"number_sorting": ("answer",), "bitwise_arithmetic": ("metadata", "problem")}
"""Data sets whose scorers evaluate a part of the entry, and which: it must be plain data or arithmetic too."""
NUMBERS = {"coin_flip": Fraction(1, 1_000), "gsm_symbolic": Fraction(0)}
"""Data sets whose scorers accept wrong numbers (the first digits of the right one, or its negative), and the relative
error that an answer may have. This is checked in addition to the scorer."""
SEPARATORS = {"word_sorting": ",", "letter_jumble": " "}
"""Data sets whose scorers ignore words after the last right one, and what separates the words."""
NO_NUMBER = re.compile(r"(?<![A-Za-z])(?:nan|inf(?:inity)?)(?:[ij]|(?![A-Za-z]))", re.IGNORECASE)
"""Python reads these as floats. The scorer of complex_arithmetic accepts nan for any number."""
FUNCTIONS = frozenset({"sin", "cos", "tan", "exp", "log", "ln", "sqrt", "Abs", "asin", "acos", "atan", "sinh", "cosh"})
NAME = re.compile(r"[A-Za-z]{1,2}|pi")
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.LShift, ast.RShift, ast.BitAnd, ast.BitOr, ast.BitXor)
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
TEXT = re.compile(r"\\text\s?\{([^{}]*)\}")


@dataclass(frozen=True)
class ReasoningGym:
    threshold: float = 1.0
    """Minimum score of a correct answer."""

    name: ClassVar[str] = "reasoning_gym"

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, int | float):
            raise InputError(f"verifier 'reasoning_gym': threshold must be a number, not {self.threshold!r}")
        if not 0 < self.threshold <= 1:
            raise InputError(f"verifier 'reasoning_gym': threshold must be above 0 and up to 1, not {self.threshold!r}")

    @property
    def version(self) -> str:
        """Our version and the library's, whose scorers may change between releases."""
        return f"2/{installed('reasoning-gym')}"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        try:
            dataset, entry, config = read_reference(problem.reference)
        except ValueError as error:
            return Verdict.unverifiable(f"the reference: {error}")
        answer = final_text(trace.answer)
        evidence: dict[str, Any] = {"dataset": dataset, "answer": answer[:200]}
        if not answer:
            return Verdict.incorrect("no answer", **evidence)
        if len(answer) > MAX_LENGTH:
            return Verdict.incorrect(f"an answer of {len(answer)} characters", **evidence)
        try:
            scorer = _scorer(dataset, config)
        except ImportError:
            return Verdict.unverifiable(INSTALL, **evidence)
        except Exception as error:
            return Verdict.unverifiable(f"reasoning-gym has no such dataset: {_line(error)}", **evidence)
        if fault := _fault(problem.reference, float(self.threshold)):
            return Verdict.unverifiable(fault, **evidence)
        if answer != entry["answer"] and (fault := refused(dataset, answer, entry)):
            return Verdict.incorrect(fault, **evidence)
        try:
            score = float(scorer.score_answer(answer, entry))
        except Exception as error:
            return Verdict.unverifiable(f"reasoning-gym's scorer failed: {_line(error)}", **evidence)
        return self._verdict(score, evidence)

    def _verdict(self, score: float, evidence: dict[str, Any]) -> Verdict:
        if not (math.isfinite(score) and 0 <= score <= 1):
            return Verdict.unverifiable(f"reasoning-gym's scorer says {score:g}", **evidence)
        outcome = Outcome.CORRECT if score >= self.threshold else Outcome.INCORRECT
        return Verdict(outcome, score, f"reasoning-gym's score is {score:.3g}", evidence)

    def prepare(self) -> None:
        """Import the library before the first verdict. Raises `InputError` if it is missing: nothing can be judged."""
        try:
            import reasoning_gym  # noqa: F401
        except ImportError:
            raise InputError(f"verifier 'reasoning_gym': {INSTALL}") from None


def final_text(answer: str) -> str:
    """The part of an answer that is scored; it may have several lines."""
    if tagged := TAGGED.findall(answer):
        return tagged[-1].strip()
    box = last_box(answer)
    if box is not None:
        return TEXT.sub(r"\1", box).strip()
    markers = list(MARKER.finditer(answer))
    return (answer[markers[-1].end() :].strip() if markers else "") or answer.strip()


def reference_of(dataset: str, entry: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> str:
    """The reference for an entry made by the library."""
    kept = {key: _packed(entry[key]) for key in ("question", "answer", "metadata")}
    data: dict[str, Any] = {"dataset": dataset, "entry": kept}
    return json.dumps(data | ({"config": dict(config)} if config else {}), ensure_ascii=False)


def read_reference(reference: str) -> tuple[str, dict[str, Any], str]:
    """(dataset, entry, its config as JSON). Raises ValueError if the reference is not one."""
    if len(reference) > MAX_REFERENCE:
        raise ValueError(f"longer than {MAX_REFERENCE} characters")
    try:
        data = json.loads(reference)
        dataset, entry = data["dataset"], _unpacked(data["entry"])
        config = data.get("config", {})
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
        raise ValueError('it is not {"dataset": ..., "entry": {...}}') from None
    if not isinstance(dataset, str) or not isinstance(entry, dict) or not isinstance(config, dict):
        raise ValueError('it is not {"dataset": ..., "entry": {...}}')
    if not isinstance(entry.get("answer"), str) or not entry["answer"].strip():
        raise ValueError("its entry has no answer, so that the scorer cannot be checked")
    return dataset, entry, json.dumps(config, sort_keys=True)


def reference_fault(reference: str, threshold: float = 1.0) -> str:
    """Why an entry cannot be judged; empty if it can. For code that makes problems; needs the library."""
    try:
        return _fault(reference, threshold)
    except ValueError as error:
        return str(error)


def _packed(value: Any) -> Any:
    """The value as JSON data, with markers for tuples and for mappings with keys that are not strings."""
    if isinstance(value, tuple):
        return {"__tuple__": [_packed(item) for item in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _packed(item) for key, item in value.items()}
        return {"__pairs__": [[_packed(key), _packed(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [_packed(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "item") and hasattr(value, "dtype"):  # a numpy scalar
        return value.item()
    raise ValueError(f"a {type(value).__name__} in the entry")


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__tuple__"}:
        return tuple(_unpacked(item) for item in value["__tuple__"])
    if value.keys() == {"__pairs__"}:
        return {_unpacked(key): _unpacked(item) for key, item in value["__pairs__"]}
    return {key: _unpacked(item) for key, item in value.items()}


@lru_cache(maxsize=256)
def _scorer(dataset: str, config: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(dataset, **{"seed": 0, "size": 1, **json.loads(config)})


@lru_cache(maxsize=1_024)
def _fault(reference: str, threshold: float) -> str:
    """Why the scorer cannot be trusted with this entry; empty if it can."""
    dataset, entry, config = read_reference(reference)
    scorer = _scorer(dataset, config)
    if fault := _entry_fault(dataset, entry):
        return fault
    try:
        gold = scorer.score_answer(entry["answer"], entry)
    except Exception as error:
        return f"reasoning-gym's scorer fails on the entry's own answer: {_line(error)}"
    if gold != 1:
        return f"reasoning-gym's scorer gives the entry's own answer {gold:.3g}"
    if refused(dataset, NONSENSE, entry):
        return ""
    try:
        return "reasoning-gym's scorer accepts nonsense" if scorer.score_answer(NONSENSE, entry) >= threshold else ""
    except Exception:  # a scorer that stumbles over nonsense has not accepted it
        return ""


def _entry_fault(dataset: str, entry: Mapping[str, Any]) -> str:
    part: Any = entry
    for key in TRUSTED_ENTRIES.get(dataset, ()):
        part = part.get(key) if isinstance(part, Mapping) else None
    if dataset in TRUSTED_ENTRIES and not (isinstance(part, str) and (_is_data(part) or _is_arithmetic(part))):
        return "the entry holds something else than plain data, which the scorer would run"
    return ""


def refused(dataset: str, answer: str, entry: Mapping[str, Any]) -> str:
    """Why an answer is withheld from the scorer, which would run it or wrongly accept it; empty if it is not."""
    kind = EVALUATED.get(dataset)
    if kind == "data" and not _is_data(answer):
        return "not the answer, and no plain list either"
    if kind == "arithmetic" and not _is_arithmetic(answer):
        return "no plain arithmetic"
    if NO_NUMBER.search(answer) and not NO_NUMBER.search(entry["answer"]):
        return "not a number"
    separator = SEPARATORS.get(dataset)
    if separator and answer.count(separator) != entry["answer"].count(separator):
        return "not as many words as there are"
    if dataset in NUMBERS:
        given, wanted = read_number(canonical(answer)), read_number(entry["answer"])
        if given is None or wanted is None or abs(given.value - wanted.value) > NUMBERS[dataset] * abs(wanted.value):
            return "not the number"
    if dataset == "puzzle24":  # whose scorer takes any four numbers
        used = sorted(map(int, re.findall(r"\d+", answer)))
        if used != sorted(entry["metadata"]["numbers"]):
            return "not the four numbers that were given"
    return ""


def _is_data(text: str) -> bool:
    """Whether the text is a literal, which can be parsed without running anything."""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _is_arithmetic(text: str) -> bool:
    """Whether the text has only numbers, short names, known functions, + - * /, bit operations and small powers."""
    if len(text) > MAX_EXPRESSION or not text.isascii():
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return all(map(_is_plain, ast.walk(tree)))


def _is_plain(part: ast.AST) -> bool:
    match part:
        case ast.Constant(value=int(value) | float(value)):
            return abs(value) < 1e18
        case ast.Name(id=name):
            return bool(NAME.fullmatch(name)) or name in FUNCTIONS
        case ast.Call(func=ast.Name(id=name), args=[_], keywords=[]):
            return name in FUNCTIONS
        case ast.BinOp(op=ast.Pow() | ast.LShift(), right=right):
            numbers = [n.value for n in ast.walk(right) if isinstance(n, ast.Constant)]
            powers = any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow) for n in ast.walk(right))
            return not powers and all(isinstance(n, int | float) and abs(n) <= MAX_POWER for n in numbers)
        case ast.BinOp(op=operator):
            return isinstance(operator, OPERATORS)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Invert()):
            return True
    return isinstance(part, ast.expr_context | ast.operator | ast.unaryop)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
