"""`code`: does the program in the answer pass the tests? It is run in a sandbox.

The reference is JSON in one of these forms. Each may also have a ``prompt`` (code that the answer continues or relies
on) and a ``tolerance`` (for floats):

    {"entry_point": "add", "cases": [{"args": [2, 3], "expected": 5}, ...]}      values, compared strictly
    {"entry_point": "add", "test": "def check(candidate): ..."}                  HumanEval, a row as published
    {"asserts": ["assert add(2, 3) == 5", ...]}                                  MBPP, also with its key "test_list"
    {"stdio": [{"input": "2 3\\n", "output": "5\\n"}, ...]}                        whole programs
    {"inputs": [...], "outputs": [...], "fn_name": "add"}                        APPS, TACO; without fn_name, programs
    [{"input": "2\\n3", "output": "5", "testtype": "functional"}, ...]            LiveCodeBench; also a whole row of it
    {"pytest": "from solution import add\\n...", "module": "solution"}            a test file

Only the standard library is available: an answer that imports numpy is `incorrect`, and its reason says so. The
answer gets inputs and returns plain data; expected values never enter its process. Values and texts are compared
outside the sandbox (`distill.verifiers.cases`). A test that needs more than calls and values runs in a second sandbox,
where stand-ins for the answer's functions pass the data back and forth (`sandbox.inside.remote`). The evidence then
says ``level: strong``. If a test passes functions to an object that the answer *returned*, the verdict is
`unverifiable`, or `incorrect` if plain data would have accepted them (as a list's ``sort`` does).

``level: weak`` marks a test that a dishonest answer could pass: it must run in the answer's process (because it patches
that process, passes functions to it, or says ``"beside": true``), it trusts the answer's own objects, or it has one
function of the answer check another's result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from distill.thinking import Response
from distill.types import Failure, Outcome, Problem, Verdict
from distill.verifiers import examine, sandbox
from distill.verifiers.examine import Examined, Row
from distill.verifiers.references import UNREADABLE, Tests, tests_of
from pipeline.errors import InputError

MAX_LENGTH = 100_000
INDENT = " " * 4
SHOWN = 20
"""Maximum number of cases listed in the evidence. The first failure is always among them."""
LACKS_BEGINNING = (
    "; it defines no {}: an answer that continues the code of its prompt needs that code in the reference, as `prompt`"
)
FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<sign>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^`]*")
PYTHON = frozenset({"python", "py", "python3"})


@dataclass(frozen=True)
class Code:
    cpu_seconds: int = 5
    """CPU seconds for one run: all calls of a function, or one input of a whole program."""
    wall_seconds: float = 15.0
    """Wall-clock seconds for one run, counted while the machine would have let the program run."""
    memory_mib: int = 1024
    """Memory for one run, in MiB."""
    sandbox: str = sandbox.AUTO
    """The backend (`namespaces`, `bubblewrap`, or `unsafe`); `auto` takes the first that passes its self-test."""
    partial: bool = False
    """The score is the share of cases passed, so all of them are run. The outcome stays all or nothing."""
    tolerance: float = 0.0
    """Tolerance for floats in values and texts, absolute or relative, whichever is larger."""

    name: ClassVar[str] = "code"
    version: ClassVar[str] = "4"

    def __post_init__(self) -> None:
        if self.sandbox not in (sandbox.AUTO, *sandbox.BACKENDS):
            known = ", ".join((sandbox.AUTO, *sandbox.BACKENDS))
            raise InputError(f"verifier 'code': unknown sandbox {self.sandbox!r}; use one of {known}")
        if self.cpu_seconds < 1 or self.wall_seconds <= 0 or self.memory_mib < 64 or self.tolerance < 0:
            need = "cpu_seconds of at least 1, wall_seconds above 0, memory_mib of at least 64, tolerance of at least 0"
            raise InputError(f"verifier 'code': needs {need}")

    def verify(self, problem: Problem, trace: Response) -> Verdict:
        tests = _tests(problem)
        if isinstance(tests, str):
            return Verdict.unverifiable(tests)
        program = program_of(trace.answer, tests)
        if fault := _program_fault(trace.answer, program):
            return Verdict.incorrect(fault)
        room = examine.Room(
            sandbox.choose(self.sandbox),
            sandbox.Limits(self.cpu_seconds, self.wall_seconds, self.memory_mib << 20),
            self.partial,
            max(self.tolerance, tests.tolerance),
        )
        try:
            found = examine.examine(program, tests, room)
        except (sandbox.Refused, OSError) as error:
            return Verdict.failed(Failure.CRASH, f"the sandbox failed: {error}")
        verdict = self._verdict(tests, found, room.sandbox)
        if verdict.outcome is Outcome.INCORRECT and _lacks_beginning(program, tests):
            return replace(verdict, reason=verdict.reason + LACKS_BEGINNING.format(tests.entry_point))
        return verdict

    def unusable(self, problem: Problem) -> str | None:
        tests = _tests(problem)
        return tests if isinstance(tests, str) else None

    def prepare(self) -> None:
        """Test the sandbox now, so that a missing one is one clear error instead of a verdict per answer."""
        sandbox.choose(self.sandbox)

    def _verdict(self, tests: Tests, found: Examined, box: str) -> Verdict:
        passed = sum(row.passed for row in found.rows)
        evidence: dict[str, Any] = {
            "level": "strong" if found.strong and box != "unsafe" else "weak",
            "sandbox": box,
            "form": tests.form,
            "cases": found.cases,
            "passed": passed,
            "results": [[row.name, "passed" if row.passed else row.why] for row in _shown_rows(found.rows)],
            "usage": found.usage,
        }
        if found.failure:
            evidence["failure"] = str(found.failure)
        if found.fault:
            return Verdict.unverifiable(found.fault, **evidence)
        failed = next((index for index, row in enumerate(found.rows) if not row.passed), None)
        if failed is None and len(found.rows) >= found.cases > 0:
            return Verdict.correct(f"passed {found.cases} cases", **evidence)
        row = found.rows[failed] if failed is not None else Row("the tests", False, "not all of them were run")
        score = passed / max(found.cases, len(found.rows), 1) if self.partial else 0.0
        evidence["failed"] = failed
        return Verdict(Outcome.INCORRECT, score, f"{row.name}: {row.why}", evidence)


def _tests(problem: Problem) -> Tests | str:
    """The tests, or a message that says what is wrong with them."""
    try:
        return tests_of(json.loads(problem.reference), problem.metadata)
    except UNREADABLE as error:
        return f"the reference holds no tests: {str(error)[:100]!r}"


def _shown_rows(rows: Sequence[Row]) -> list[Row]:
    """The first `SHOWN` rows. If none of them failed, the first failure replaces the last."""
    failed = [row for row in rows[SHOWN:] if not row.passed]
    first_fails_late = failed and all(row.passed for row in rows[:SHOWN])
    return [*rows[: SHOWN - 1], failed[0]] if first_fails_late else list(rows[:SHOWN])


def _program_fault(answer: str, program: str) -> str:
    if len(answer) > MAX_LENGTH:
        return f"a program of {len(answer)} characters"
    if not program.strip():
        return "no program"
    try:
        program.encode()
    except UnicodeEncodeError:
        return "the program is not valid text"
    return ""


def _lacks_beginning(program: str, tests: Tests) -> bool:
    """Whether the function is nowhere defined, and may be in a prompt that the reference does not have."""
    return bool(tests.entry_point) and not tests.prompt and not _definition(tests.entry_point).search(program)


def _definition(function: str) -> re.Pattern[str]:
    return re.compile(
        rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{re.escape(function)}[ \t]*[(\[]"
        rf"|^{re.escape(function)}[ \t]*(?::[^=\n]*)?=(?!=)",
        re.MULTILINE,
    )


def program_of(answer: str, tests: Tests) -> str:
    """The program to run: the last code block that defines the function (or the last block, or the whole answer).

    A function body alone is appended to the prompt. A complete function gets the part of the prompt before its heading.
    """
    if len(answer) > MAX_LENGTH:
        return ""
    found = blocks(answer) or [answer]
    defined = _definition(tests.entry_point)
    code = next((block for block in reversed(found) if defined.search(block)), found[-1])
    if not tests.prompt or not tests.entry_point:
        return tests.header + code
    heading = defined.search(tests.prompt)
    if defined.search(code):
        return (tests.prompt[: heading.start()] if heading else tests.prompt) + "\n" + code
    if heading and not code[:1].isspace():
        return tests.prompt + INDENT + code  # responses are stripped, so the first line lost its indentation
    return tests.prompt + code


def blocks(answer: str) -> list[str]:
    """The fenced blocks that are tagged as Python; if there are none, the blocks without a tag.

    As in CommonMark, a line of the same fence characters closes a fence if it is indented by at most three more spaces,
    so a fence inside a docstring closes nothing. An unclosed block extends to the end of the answer.
    """
    tagged: list[str] = []
    untagged: list[str] = []
    lines = iter(answer.splitlines())
    for line in lines:
        opened = FENCE.fullmatch(line)
        if opened is None:
            continue
        inside: list[str] = []
        width = len(opened["indent"].expandtabs())
        closing = re.compile(rf"[ \t]{{0,{width + 3}}}{opened['sign'][0]}{{{len(opened['sign'])},}}[ \t]*")
        for row in lines:
            if closing.fullmatch(row):
                break
            blank = len(row) - len(row.lstrip())
            inside.append(row[min(blank, width) :])
        language = opened["language"].lower()
        if language in PYTHON or not language:
            (tagged if language else untagged).append("\n".join(inside) + "\n")
    return tagged or untagged
