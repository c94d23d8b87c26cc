"""Run a program against its tests, in one sandbox or two, and report the result and cost of each case.

Everything that comes out of the answer's sandbox is treated as data. Values are compared here, or in the test's own
sandbox. Only if both share one sandbox (`Tests.apart` is false) could the answer forge results, and the evidence says
so.
"""

from __future__ import annotations

import importlib.util
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from distill.types import Failure
from distill.verifiers import sandbox
from distill.verifiers.cases import as_lists, same_text, wanted
from distill.verifiers.references import Tests
from distill.verifiers.sandbox.inside.data import NOT_DATA, decode, encode

CALLS, STDIO, CANDIDATE, TESTS = (
    f"from inside.{name} import main\nmain()" for name in ("calls", "stdio", "candidate", "tests")
)
ALL_TEXTS = 4
"""All inputs of a whole program together may take this many times the CPU time of one."""
FAILURES = {"busy": Failure.TIMEOUT, "memory": Failure.MEMORY}
"""What the end of a run means if the machine is to blame for it."""
PYTEST = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging")


class Row(NamedTuple):
    """The result of one case."""

    name: str
    passed: bool
    why: str = ""


class Room(NamedTuple):
    """The sandbox, limits and comparison settings to examine a program with."""

    sandbox: str
    limits: sandbox.Limits
    all_cases: bool
    tolerance: float


@dataclass(frozen=True)
class Examined:
    """``cases`` counts all cases, ``rows`` holds those that were run. A ``fault`` is not the answer's, so there can be
    no verdict. With a ``failure`` it may be the machine's, otherwise it is the reference's."""

    cases: int
    rows: list[Row]
    usage: dict[str, Any] = field(default_factory=dict)
    strong: bool = True
    fault: str = ""
    failure: Failure | None = None


def examine(program: str, tests: Tests, room: Room) -> Examined:
    if tests.stdio:
        return _run_stdio(program, tests, room)
    if tests.cases:
        return _run_calls(program, tests, room)
    if tests.kind == "pytest" and not _packages():
        return Examined(0, [], fault="pytest is not installed; pip install 'distill-reasoning[verify]'")
    return _run_apart(program, tests, room) if tests.apart else _run_beside(program, tests, room)


def _run(room: Room, program: str, given: dict[str, Any], stdin: bytes = b"", **more: Any) -> sandbox.Ran:
    return sandbox.run(program, json.dumps(given).encode(), stdin, room.limits, room.sandbox, **more)


def _run_calls(program: str, tests: Tests, room: Room) -> Examined:
    calls = [(encode(case.arguments), encode(case.named)) for case in tests.cases]
    given = {"code": program, "module": tests.module, "entry_point": tests.entry_point, "calls": calls}
    ran = _run(room, CALLS, given)
    usage = _usage(ran)
    if ran.ended in FAILURES:
        return Examined(len(calls), [], usage, fault=ran.reason, failure=FAILURES[ran.ended])
    frames, fault = _frames(ran.results)
    usage["seconds"] = [frames[i].get("seconds") for i in range(len(calls)) if i in frames][:20]
    rows: list[Row] = [Row("the results", False, fault)] if fault else []
    for index in range(len(calls) if not fault else 0):
        rows.append(_call_row(index, tests, frames, ran, room))
        if not rows[-1].passed and not room.all_cases:
            break
    return Examined(len(calls), rows, usage)


def _call_row(index: int, tests: Tests, frames: dict[Any, dict[str, Any]], ran: sandbox.Ran, room: Room) -> Row:
    name, frame = f"case {index + 1}", frames.get(index)
    if frame is None or "value" not in frame:
        error = frame.get("error") if frame else frames.get("error", {}).get("error") or ran.reason
        return Row(name, False, line(error))
    try:
        value = decode(frame["value"])
        value = as_lists(value) if tests.lists else value
        right = wanted(tests.cases[index], value, tests.strict, room.tolerance)
    except NOT_DATA:
        right = False
    return Row(name, right, "" if right else "a different value")


def _frames(results: bytes) -> tuple[dict[Any, dict[str, Any]], str]:
    """Result frames by case number (and "error"), and what is wrong with them as a whole, if anything is."""
    frames: dict[Any, dict[str, Any]] = {}
    for text in results.splitlines():
        try:
            frame = json.loads(text)
        except (ValueError, RecursionError):
            return {}, "results that are not data"
        key = frame.get("case", "error") if isinstance(frame, dict) else None
        if not isinstance(key, int | str):
            return {}, "results that are not data"
        if key in frames:
            return {}, "more than one result for a case"
        frames[key] = frame | {"seconds": _seconds(frame.get("seconds"))}
    return frames, ""


def _seconds(claimed: Any) -> float | None:
    """The seconds of a call as measured in the answer's own process: fit for a table, not for a decision."""
    return round(claimed, 3) if isinstance(claimed, float) and 0 <= claimed < 1e6 else None


def _run_stdio(program: str, tests: Tests, room: Room) -> Examined:
    """Run a whole program once per input, each time in a fresh sandbox, so that no state carries over."""
    rows: list[Row] = []
    usage: dict[str, Any] = {"cpu_seconds": 0.0, "memory_kib": 0, "seconds": []}
    for index, (given, expected) in enumerate(tests.stdio):
        ran = _run(room, STDIO, {"code": program}, given.encode())
        usage["cpu_seconds"] = round(usage["cpu_seconds"] + ran.cpu_seconds, 3)
        usage["memory_kib"] = max(usage["memory_kib"], ran.memory_kib)
        usage["seconds"] = [*usage["seconds"], round(ran.cpu_seconds, 3)][:20]
        if ran.ended in FAILURES:
            return Examined(len(tests.stdio), rows, usage, fault=ran.reason, failure=FAILURES[ran.ended])
        rows.append(_stdio_row(f"case {index + 1}", ran, expected, room.tolerance))
        if usage["cpu_seconds"] > ALL_TEXTS * room.limits.cpu_seconds and index + 1 < len(tests.stdio):
            rows.append(Row(f"case {index + 2}", False, "the CPU time limit of all cases"))
        if not rows[-1].passed and (not room.all_cases or len(rows) > index + 1):
            break
    return Examined(len(tests.stdio), rows, usage)


def _stdio_row(name: str, ran: sandbox.Ran, expected: str, tolerance: float) -> Row:
    if (ran.ended, ran.code) != ("exit", 0):
        frames, _ = _frames(ran.results)
        return Row(name, False, line(frames.get("error", {}).get("error") or ran.reason))
    right = same_text(ran.stdout.decode("utf-8", "replace"), expected, tolerance)
    return Row(name, right, "" if right else "a different output")


def _run_apart(program: str, tests: Tests, room: Room) -> Examined:
    """Run the answer in one sandbox and its test in another, connected by two pipes.

    The test gets more time than the answer, so that the answer reaches its limits first.
    """
    requests, asked = os.pipe()
    replied, replies = os.pipe()
    limits = room.limits._replace(cpu_seconds=2 * room.limits.cpu_seconds, wall_seconds=2 * room.limits.wall_seconds)
    waiting = sandbox.Waiting()
    with ThreadPoolExecutor(1) as aside:
        given = {"code": program, "module": tests.module}
        answer = aside.submit(_run, room, CANDIDATE, given, wires=(requests, replies), waiting=waiting)
        roomy, test_given = room._replace(limits=limits), _test_payload(tests, None, room)
        test = _run(roomy, TESTS, test_given, wires=(replied, asked), waiting=waiting, **_visible(tests))
        ran = answer.result()
    if ran.ended in ("cpu", "wall", "output", "signal"):
        return Examined(1, [*_reported_rows(test)[0], Row("the program", False, ran.reason)], _usage(ran))
    rows, report = _reported_rows(test)
    if "apart" in report:
        return _run_beside(program, tests, room)
    fault = ran.reason if ran.ended in FAILURES else report.get("fault") or _test_fault(test)
    failure = FAILURES.get(ran.ended) or FAILURES.get(test.ended)
    return Examined(len(rows), rows, _usage(ran), not report.get("claims"), line(fault), failure)


def _run_beside(program: str, tests: Tests, room: Room) -> Examined:
    """Run answer and test in one sandbox, where the answer could forge the results."""
    ran = _run(room, TESTS, _test_payload(tests, program, room), **_visible(tests))
    rows, report = _reported_rows(ran)
    if ran.ended in FAILURES or "fault" in report:
        fault = line(report.get("fault") or ran.reason)
        return Examined(len(rows), rows, _usage(ran), strong=False, fault=fault, failure=FAILURES.get(ran.ended))
    if not rows or ran.ended != "exit":
        rows = [*rows, Row("the test script", False, ran.reason)]
    return Examined(len(rows), rows, _usage(ran), strong=False)


def _test_payload(tests: Tests, program: str | None, room: Room) -> dict[str, Any]:
    return {
        "code": program,
        "module": tests.module,
        "kind": tests.kind,
        "entry_point": tests.entry_point,
        "before": tests.prompt if tests.kind == "script" else "",
        "script": tests.script,
        "packages": sandbox.seen(room.sandbox, _packages()) if tests.kind == "pytest" else [],
    }


def _test_fault(test: sandbox.Ran) -> str:
    """A test that did not end by itself is broken: the answer would have reached its limits first."""
    return "" if test.ended == "exit" and test.results else f"the test: {test.reason}"


def _reported_rows(ran: sandbox.Ran) -> tuple[list[Row], dict[str, Any]]:
    try:
        report = json.loads(ran.results)
        return [Row(line(name), passed is True, line(why)) for name, passed, why in report["rows"]], report
    except NOT_DATA:
        return [], {}


def _visible(tests: Tests) -> dict[str, Any]:
    return {"visible": tuple(_packages())} if tests.kind == "pytest" else {}


def _packages() -> list[str]:
    """The directories that pytest is imported from, for the test's sandbox; empty if it is not installed."""
    found = [importlib.util.find_spec(name) for name in PYTEST]
    if not all(spec and spec.origin for spec in found):
        return []
    return sorted({str(Path(str(spec.origin)).parents[1]) for spec in found if spec})


def _usage(ran: sandbox.Ran) -> dict[str, Any]:
    return {"cpu_seconds": round(ran.cpu_seconds, 3), "memory_kib": ran.memory_kib}


def line(text: Any) -> str:
    """A text from the sandbox, shortened and without control characters, fit for a terminal and a log."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:200])
