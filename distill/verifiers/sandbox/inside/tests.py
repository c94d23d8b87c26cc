"""In the box: run a test script or a pytest file against an answer in another box or, in weak tests, in this one.

Sends ``{"rows": [[name, whether it passed, why not], ...], "claims": ...}``. It adds ``"fault"`` if the test itself
cannot be run, or ``"apart"`` if the test passes something that is not plain data and must run beside the answer.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import random
import sys
import types
from typing import Any

from .calls import RESULTS, function_of, load
from .data import described, read_all, send
from .remote import Apart, Refused, Remote, RemoteModule

MOST_PASSED = 1000
"""Passed rows beyond this many are not reported. Failed ones always are, up to the limit on output."""


class Rows:
    """The results so far: one row for each assert or test."""

    def __init__(self) -> None:
        self.all: list[tuple[str, bool, str]] = []

    def passed(self, name: str) -> None:
        if len(self.all) < MOST_PASSED:
            self.all.append((name, True, ""))

    def failed(self, name: str, error: BaseException | str) -> None:
        self.all.append((name[:100], False, error[:200] if isinstance(error, str) else described(error)))


class _Unloadable(Exception):
    """The answer cannot even be loaded."""


def main() -> None:
    given = json.loads(read_all(3))
    random.seed(0)
    rows, remote = Rows(), Remote() if given["code"] is None else None
    answer: dict[str, Any] = {}
    try:
        try:
            module = load(given["code"], given["module"]) if remote is None else remote.module(given["module"])
        except BaseException as error:
            raise _Unloadable(described(error)) from None
        (_pytest if given["kind"] == "pytest" else _script)(given, module, rows)
    except (Apart, Refused):
        pass
    except _Unloadable as error:
        rows.failed("the program", str(error))
    except ModuleNotFoundError as error:
        if remote is not None and error is remote.raised:
            rows.failed("the script", error)
        else:
            answer = {"fault": described(error)}
    except BaseException as error:
        rows.failed("the script", error)
    if remote is not None and remote.gone:
        rows.failed("the program", remote.gone)
    if remote is not None and remote.refused:
        rows.all = [row for row in rows.all if row[1] or remote.refused not in row[2]]
        if all(passed for _, passed, _ in rows.all):
            answer = {"fault": remote.refused}
    elif remote is not None and remote.apart:
        answer = {"apart": remote.apart}
    send(RESULTS, {"rows": rows.all, "claims": remote is not None and remote.claims} | answer)
    os._exit(0)


def _script(given: dict[str, Any], module: types.ModuleType, rows: Rows) -> None:
    """Run a test script.

    The prompt's helpers come from the prompt, modules of the standard library from the library. The requested function,
    and every name that nothing else defines, comes from the answer. If the script uses two functions of the answer, one
    could judge the other: that is a claim.
    """
    space: dict[str, Any] = {"__name__": "test"}
    exec(compile(given["before"], "prompt.py", "exec"), space)
    tree = ast.parse(given["script"])
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names = [name for name in dir(module) if name in used and name not in space and not hasattr(builtins, name)]
    for name in names:
        if name in sys.stdlib_module_names:
            space[name] = importlib.import_module(name)
        else:
            space[name] = getattr(module, name)
    functions = [name for name in names if name not in sys.stdlib_module_names and not name[:1].isupper()]
    if isinstance(module, RemoteModule) and len({*functions, given["entry_point"]} - {""}) > 1:
        module._remote.claims = True
    if given["entry_point"]:
        space[given["entry_point"]] = function_of(module, given["entry_point"])
    space["_rows"] = rows
    exec(compile(ast.fix_missing_locations(_Counted().visit(tree)), "test.py", "exec"), space)
    if not rows.all:
        rows.passed("the script")


class _Counted(ast.NodeTransformer):
    """Turns every assert into a row, so that a failed one does not end the script."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        name = f"line {node.lineno}"
        template = (
            f"try:\n    pass\n    _rows.passed({name!r})\nexcept Exception as _e:\n    _rows.failed({name!r}, _e)"
        )
        attempt = ast.parse(template).body[0]
        assert isinstance(attempt, ast.Try)
        attempt.body[0] = node
        return attempt


def _pytest(given: dict[str, Any], module: types.ModuleType, rows: Rows) -> None:
    """Run a test file with pytest, without third-party plugins. pytest wants a null device, which is a file here."""
    sys.path += given["packages"]
    os.devnull = "/tmp/null"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with open(os.devnull, "w"):
        pass
    import pytest

    class Listener:
        def pytest_runtest_logreport(self, report: Any) -> None:
            name = report.nodeid.rpartition("::")[2]
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                rows.failed(name, str(crash.message if crash else report.longrepr))
            elif report.when == "call" and not report.skipped:
                rows.passed(name)

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                rows.failed("collecting", str(report.longrepr).strip().splitlines()[-1])

    with open("/tmp/test_answer.py", "w") as file:
        file.write(given["script"])
    options = ["-q", "-s", "--tb=short", "--rootdir=/tmp", "--import-mode=importlib"]
    plugins = [f"-pno:{name}" for name in ("cacheprovider", "faulthandler")]
    status = pytest.main([*options, *plugins, "/tmp/test_answer.py"], plugins=[Listener()])
    if (
        status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
        and rows.all
    ):
        rows.failed("pytest", f"it was ended before its end ({status!r})")
    if not rows.all and status is pytest.ExitCode.INTERRUPTED:
        rows.failed("pytest", "a KeyboardInterrupt or an exit ended it")
    if not rows.all:
        raise ModuleNotFoundError(f"pytest found no test to run ({status!r})")
