"""`code`: does the program in the answer do what the tests ask? It runs in the sandbox, or not at all.

The reference is JSON in one of these forms; ``prompt`` (code that the answer continues or relies on) may
stand beside each:

    {"entry_point": "add", "cases": [{"args": [2, 3], "expected": 5}, ...]}      values, compared strictly
    {"entry_point": "add", "test": "def check(candidate): ..."}                  HumanEval
    {"asserts": ["assert add(2, 3) == 5", ...]}                                  MBPP
    {"stdio": [{"input": "2 3\\n", "output": "5\\n"}, ...]}                        whole programs

The candidate gets inputs and returns plain data; expected values never enter its process, and the
comparison is made here. Asserts are turned into inputs and expected values (`distill.verifiers.cases`)
where they are plain calls; a test that is anything more is run beside the candidate, which could cheat
it, and the evidence then says ``level: weak`` instead of ``strong``.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from distill.thinking import Response
from distill.types import Problem, Verdict
from distill.verifiers import sandbox
from distill.verifiers.cases import Case, cases_of_asserts, cases_of_check, decode, wanted

MAX_LENGTH = 100_000
INDENT = " " * 4
ALL_CASES = 4
"""All texts of a whole program together may take this many times the limit of one."""
FENCE = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)

CALLS = """
import json, os, sys
_given = json.loads(b"".join(iter(lambda: os.read(3, 65536), b"")))
def _plain(value, depth=0):
    if depth > 50:
        raise ValueError("nested too deeply")
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return {"int": hex(value)}
    if kind is float:
        return {"float": repr(value)}
    if kind is complex:
        return {"complex": [repr(value.real), repr(value.imag)]}
    if kind in (list, tuple, set, frozenset):
        return {kind.__name__: [_plain(item, depth + 1) for item in value]}
    if kind is dict:
        return {"dict": [[_plain(k, depth + 1), _plain(v, depth + 1)] for k, v in value.items()]}
    raise TypeError("not plain data: " + kind.__name__)
def _send(frame):
    data = (json.dumps(frame) + chr(10)).encode()
    while data:
        data = data[os.write(4, data):]
def _run(given):
    space = {"__name__": "__candidate__"}
    try:
        exec(compile(given["code"], "answer.py", "exec"), space)
        function = space[given["entry_point"]] if given["calls"] else None
    except BaseException as error:
        return _send({"error": type(error).__name__ + ": " + str(error)[:200]})
    for index, call in enumerate(given["calls"]):
        try:
            arguments, named = eval(call, {"__builtins__": {"set": set, "frozenset": frozenset, "float": float}})
            _send({"case": index, "value": _plain(function(*arguments, **named))})
        except BaseException as error:
            _send({"case": index, "error": type(error).__name__ + ": " + str(error)[:200]})
    if given["script"]:
        try:
            exec(compile(given["script"], "test.py", "exec"), space)
            _send({"script": given["token"]})
        except BaseException as error:
            _send({"error": type(error).__name__ + ": " + str(error)[:200]})
_run(_given)
os._exit(0)  # threads it has left behind are not waited for
"""

PROGRAM = """
import json, os
_given = json.loads(b"".join(iter(lambda: os.read(3, 65536), b"")))
os.close(3)
exec(compile(_given["code"], "answer.py", "exec"), {"__name__": "__main__"})
"""


class Tests(NamedTuple):
    """What is asked of a program: calls of a function, a script beside it (weak), or texts in and out."""

    entry_point: str
    cases: list[Case]
    script: str
    stdio: list[tuple[str, str]]
    prompt: str
    strict: bool


@dataclass(frozen=True)
class Code:
    """The limits are of one run: all calls of a function, or one text of a whole program."""

    cpu_seconds: int = 5
    wall_seconds: float = 30.0

    name: ClassVar[str] = "code"
    version: ClassVar[str] = "1"

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        try:
            tests = tests_of(json.loads(problem.reference))
        except (ValueError, KeyError, TypeError, SyntaxError, RecursionError) as error:
            return Verdict.unverifiable(f"the reference holds no tests: {str(error)[:100]!r}")
        answer = trace.answer
        if len(answer) > MAX_LENGTH:
            return Verdict.incorrect(f"a program of {len(answer)} characters")
        if not (code := program_of(answer, tests)).strip():
            return Verdict.incorrect("no program")
        try:
            code.encode()
        except UnicodeEncodeError:
            return Verdict.incorrect("the program is not valid text")
        limits = sandbox.Limits(cpu_seconds=self.cpu_seconds, wall_seconds=self.wall_seconds)
        return _check_stdio(code, tests, limits) if tests.stdio else _check_calls(code, tests, limits)

    def prepare(self) -> None:
        """Try the sandbox now, so that its absence is one clear error and not a verdict per answer."""
        sandbox.probe()


def tests_of(reference: Any) -> Tests:
    """Read a reference (see the module); raises ValueError, KeyError or TypeError where it is none."""
    if not isinstance(reference, dict):
        raise ValueError("not an object")
    entry, prompt = str(reference.get("entry_point", "")), str(reference.get("prompt", ""))
    if "stdio" in reference:
        pairs = [(str(case["input"]), str(case["output"])) for case in reference["stdio"]]
        return _some(Tests(entry, [], "", pairs, prompt, False))
    if "cases" in reference:
        cases = [Case.of_values(case["args"], case.get("kwargs", {}), case["expected"]) for case in reference["cases"]]
        return _some(Tests(reference["entry_point"], cases, "", [], prompt, True))
    if "test" in reference:
        entry = reference["entry_point"]
        cases, whole = cases_of_check(reference["test"])
        script = "" if whole else f"{reference['test']}\n\ncheck({entry})\n"
        return _some(Tests(entry, cases, script, [], prompt, False))
    entry, cases, whole = cases_of_asserts(reference["asserts"])
    return _some(Tests(entry, cases, "" if whole else "\n".join(reference["asserts"]), [], prompt, False))


def _some(tests: Tests) -> Tests:
    if not (tests.cases or tests.script or tests.stdio):
        raise ValueError("no test in it")
    return tests


def program_of(answer: str, tests: Tests) -> str:
    """The last code block that defines the function (or the last block, or all of the answer), made whole.

    A body alone continues the prompt; a whole function gets what stands before it in the prompt.
    """
    blocks = FENCE.findall(answer) or [answer]
    heading = f"def {tests.entry_point}("
    code = next((block for block in reversed(blocks) if heading in block), blocks[-1])
    if not tests.prompt or not tests.entry_point:
        return code
    if heading in code:
        return tests.prompt.partition(heading)[0] + "\n" + code
    if heading in tests.prompt and not code[:1].isspace():
        return tests.prompt + INDENT + code  # a response is stripped, and its first line has lost its place
    return tests.prompt + code


def _check_calls(code: str, tests: Tests, limits: sandbox.Limits) -> Verdict:
    token = secrets.token_hex(8)
    given = {
        "code": code,
        "entry_point": tests.entry_point,
        "calls": [case.call for case in tests.cases],
        "script": tests.script,
        "token": token,
    }
    ran = _run(CALLS, json.dumps(given).encode(), b"", limits)
    level = "weak" if tests.script else "strong"
    evidence: dict[str, Any] = {"level": level, "cases": len(tests.cases), "usage": _usage(ran)}
    frames, fault = _frames(ran.results)
    if fault:
        return Verdict.incorrect(fault, **evidence)
    for index, case in enumerate(tests.cases):
        frame = frames.get(index)
        if frame is None or "value" not in frame:
            said = frame.get("error") if frame else frames.get("error", {}).get("error") or ran.reason
            return Verdict.incorrect(f"case {index + 1}: {_line(said)}", **evidence, failed=index)
        try:
            held = wanted(case, decode(frame["value"]), tests.strict)
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError, OverflowError):
            held = False
        if not held:
            return Verdict.incorrect(f"case {index + 1}: a different value", **evidence, failed=index)
    if tests.script and frames.get("script", {}).get("script") != token:
        said = frames.get("error", {}).get("error") or ran.reason
        return Verdict.incorrect(f"the test script: {_line(said)}", **evidence)
    return Verdict.correct(f"passed {len(tests.cases)} cases" + (" and a script" if tests.script else ""), **evidence)


def _check_stdio(code: str, tests: Tests, limits: sandbox.Limits) -> Verdict:
    payload = json.dumps({"code": code}).encode()
    evidence: dict[str, Any] = {"level": "strong", "cases": len(tests.stdio)}
    spent = 0.0
    for index, (given, expected) in enumerate(tests.stdio):
        ran = _run(PROGRAM, payload, given.encode(), limits)
        evidence["usage"] = _usage(ran)
        spent += ran.cpu_seconds
        if spent > ALL_CASES * limits.cpu_seconds:
            return Verdict.incorrect(f"case {index + 1}: the CPU time limit of all cases", **evidence, failed=index)
        if (ran.ended, ran.code) != ("exit", 0):
            return Verdict.incorrect(f"case {index + 1}: {ran.reason}", **evidence, failed=index)
        if _lines(ran.stdout.decode("utf-8", "replace")) != _lines(expected):
            return Verdict.incorrect(f"case {index + 1}: a different output", **evidence, failed=index)
    return Verdict.correct(f"passed {len(tests.stdio)} cases", **evidence)


def _run(program: str, payload: bytes, stdin: bytes, limits: sandbox.Limits) -> sandbox.Ran:
    """Run; once more where the wall clock ended it, since a busy machine can do that to a good program."""
    ran = sandbox.run(program, payload, stdin, limits)
    return sandbox.run(program, payload, stdin, limits) if ran.ended == "wall" else ran


def _frames(results: bytes) -> tuple[dict[Any, dict[str, Any]], str]:
    """Frames by case number (and "script", "error"), and what is wrong with them as a whole."""
    frames: dict[Any, dict[str, Any]] = {}
    for line in results.splitlines():
        try:
            frame = json.loads(line)
        except (ValueError, RecursionError):
            return {}, "results that are not data"
        if not isinstance(frame, dict):
            return {}, "results that are not data"
        key = frame.get("case", "script" if "script" in frame else "error")
        if not isinstance(key, int | str) or key in frames:
            return {}, "more than one result for a case"
        frames[key] = frame
    return frames, ""


def _usage(ran: sandbox.Ran) -> dict[str, Any]:
    return {"cpu_seconds": round(ran.cpu_seconds, 3), "memory_kib": ran.memory_kib}


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _line(said: Any) -> str:
    """What the candidate said, fit for a terminal and a log."""
    return "".join(c if c.isprintable() else "?" for c in str(said)[:200])
