"""Parse the references of `code` into one type, `Tests`. `distill.verifiers.code` lists the forms they may have.

Nothing is executed here. Tests that cannot be read raise one of `UNREADABLE`, and the verdict is `unverifiable`.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from distill.verifiers.cases import Case, cases_of_asserts, cases_of_check

UNREADABLE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    SyntaxError,
    RecursionError,
    EOFError,
    zlib.error,
    pickle.PickleError,
)

SITE_HEADER = """
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string, sys
from typing import *
from string import *
from re import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from itertools import *
from functools import *
from operator import *
from builtins import *
"""
"""The imports that contest sites provide and their users therefore leave out, in the order of LiveCodeBench."""

FORMS = ("test", "test_list", "asserts", "cases", "stdio", "inputs", "tests", "public_test_cases", "pytest")
"""The keys that identify a reference: one of them holds its tests."""

CROSSING = {"monkeypatch", "mock", "patch", "inspect", "stdin", "capfd", "__dict__", "getsource"}
"""A test that uses one of these names reaches into the answer's process, and must run in it."""


@dataclass(frozen=True, slots=True)
class Tests:
    """The tests of a program: calls of a function, a test script, or pairs of input and output text.

    ``strict`` and ``lists`` control how values compare (`distill.verifiers.cases`). ``header`` goes before the answer,
    ``prompt`` is the code that the answer continues. The ``kind`` of a script is "script" or "pytest"; ``apart`` means
    that it can run in a different sandbox than the answer.
    """

    form: str
    entry_point: str = ""
    cases: list[Case] = field(default_factory=list)
    stdio: list[tuple[str, str]] = field(default_factory=list)
    script: str = ""
    kind: str = "script"
    module: str = "solution"
    apart: bool = True
    prompt: str = ""
    header: str = ""
    strict: bool = False
    lists: bool = False
    tolerance: float = 0.0


def tests_of(reference: Any, metadata: Mapping[str, Any]) -> Tests:
    """The tests in a parsed reference. ``metadata`` may name the function if the tests do not, as in some data sets."""
    if isinstance(reference, list):
        texts = all(isinstance(item, str) for item in reference)
        reference = {"asserts" if texts else "tests": reference}
    if not isinstance(reference, dict):
        raise ValueError("not an object or a list")
    tests = _read(reference, metadata)
    if not (tests.cases or tests.script or tests.stdio):
        raise ValueError("no test in it")
    tolerance = float(reference.get("tolerance", 0.0))
    return replace(tests, prompt=str(reference.get("prompt", "")), tolerance=tolerance)


def _read(reference: dict[str, Any], metadata: Mapping[str, Any]) -> Tests:
    named = reference | dict(metadata)
    if "pytest" in reference:
        module = str(reference.get("module", "solution"))
        if not module.isidentifier():
            raise ValueError(f"{module[:40]!r} is no module name")
        script = str(reference["pytest"])
        return Tests("pytest", script=script, kind="pytest", module=module, apart=_apart(reference, script))
    if "stdio" in reference:
        return Tests("stdio", stdio=[(_text(case["input"]), _text(case["output"])) for case in reference["stdio"]])
    if "inputs" in reference:
        return _apps(reference, named)
    if "public_test_cases" in reference or "private_test_cases" in reference:
        hidden = [_packed(reference.get(f"{whose}_test_cases", [])) for whose in ("public", "private")]
        return _livecodebench([*hidden[0], *hidden[1]], named | _object(reference.get("metadata", {})))
    if "tests" in reference:
        return _livecodebench(reference["tests"], named)
    if "cases" in reference:
        cases = [Case(list(c["args"]), dict(c.get("kwargs", {})), c["expected"]) for c in reference["cases"]]
        return Tests("cases", str(reference["entry_point"]), cases, strict=True)
    if "test" in reference:
        entry, script = str(reference["entry_point"]), str(reference["test"])
        cases, whole = cases_of_check(script)
        if whole:
            return Tests("check", entry, cases)
        return Tests("check", entry, script=f"{script}\n\ncheck({entry})\n", apart=_apart(reference, script))
    if "asserts" in reference or "test_list" in reference:
        return _asserts(reference)
    raise ValueError(f"it has {', '.join(map(repr, reference)) or 'no key'}, of which none is {', '.join(FORMS)}")


def _asserts(reference: dict[str, Any]) -> Tests:
    """MBPP: a list of asserts, with their imports and setup code."""
    asserts = list(map(str, reference["asserts"] if "asserts" in reference else reference["test_list"]))
    before = [*map(str, reference.get("test_imports", [])), str(reference.get("test_setup_code", ""))]
    entry, cases, whole = cases_of_asserts(asserts)
    if whole:
        return Tests("asserts", entry, cases)
    script = "\n".join([*before, *asserts])
    return Tests("asserts", script=script, apart=_apart(reference, script))


def _apps(reference: dict[str, Any], named: Mapping[str, Any]) -> Tests:
    """APPS and TACO: parallel lists of inputs and outputs. A function's output may be wrapped in a list, or not."""
    pairs = list(zip(reference["inputs"], reference["outputs"], strict=True))
    name = named.get("fn_name")
    if not name:
        return Tests("stdio", stdio=[(_text(given), _text(wanted)) for given, wanted in pairs])
    cases = []
    for given, wanted in pairs:
        arguments = list(given if isinstance(given, list) else [given])
        others = (wanted[0],) if isinstance(wanted, list) and wanted else ()
        cases.append(Case(arguments, expected=wanted, others=others))
    return Tests("functional", str(name), cases, header=SITE_HEADER, lists=True)


def _livecodebench(rows: Any, named: Mapping[str, Any]) -> Tests:
    """LiveCodeBench: {"input", "output", "testtype"} per case. A function's arguments are JSON, one per line."""
    rows = list(rows)
    if not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("tests: expected objects with input and output (a check(candidate) goes by the key test)")
    kinds = {str(row.get("testtype", "stdin")) for row in rows}
    if kinds <= {"stdin", "stdio"}:
        return Tests("stdio", stdio=[(_text(row["input"]), _text(row["output"])) for row in rows])
    if kinds != {"functional"}:
        raise ValueError(f"tests of type {', '.join(sorted(kinds))[:60]}")
    name = next((named[key] for key in ("entry_point", "fn_name", "func_name") if named.get(key)), None)
    if not name:
        raise ValueError("functional tests without the function's name (fn_name, here or in the problem's metadata)")
    arguments = [[json.loads(line) for line in row["input"].split("\n") if line.strip()] for row in rows]
    cases = [Case(given, expected=json.loads(row["output"])) for given, row in zip(arguments, rows, strict=True)]
    return Tests("functional", str(name), cases, header=SITE_HEADER, lists=True)


def _text(value: Any) -> str:
    """An input or output as text. Some data sets store it as a list of lines."""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    if not isinstance(value, str | int | float):
        raise TypeError("an input or output that is no text")
    return str(value)


def _object(value: Any) -> dict[str, Any]:
    return dict(json.loads(value) if isinstance(value, str) else value)


def _packed(value: Any) -> list[Any]:
    """LiveCodeBench's tests: a list, its JSON, or its JSON pickled, compressed and base64-encoded."""
    if not isinstance(value, str):
        return list(value)
    if value.lstrip().startswith("["):
        return list(json.loads(value))
    return list(json.loads(_Plain(io.BytesIO(zlib.decompress(base64.b64decode(value)))).load()))


class _Plain(pickle.Unpickler):
    """Unpickles plain values, and refuses whatever would import something."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"a pickle that wants {module}.{name}")


def _apart(reference: dict[str, Any], script: str) -> bool:
    """Whether this test can run in a different sandbox than the answer. The test alone decides, never the answer."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.name for alias in node.names}
        names |= {getattr(node, field) for field in ("id", "attr", "arg") if isinstance(getattr(node, field, 0), str)}
    return not reference.get("beside") and not names & CROSSING
