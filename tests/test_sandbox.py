"""The sandbox and the `code` verifier: hostile programs are incorrect, harm nothing and leave nothing."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distill.types import Outcome, Problem, Verdict
from distill.verifiers import VerifierPool, build, judge, sandbox
from distill.verifiers.cases import cases_of_asserts, cases_of_check

DATA = Path(__file__).parents[2] / "shared" / "data"
ADD = {"entry_point": "add", "cases": [{"args": [2, 3], "expected": 5}, {"args": [-1, 1], "expected": 0}]}
HONEST = "def add(a, b):\n    return a + b\n"

try:
    sandbox.probe()
    MISSING = ""
except sandbox.SandboxError as error:
    MISSING = str(error)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def verify(reference: object, code: str, **settings: object) -> Verdict:
    problem = Problem("p", "?", json.dumps(reference), "code", "test")
    return judge(build({"code": settings}), problem, f"```python\n{code}\n```")


HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "memory bomb": "x = b'x' * (1 << 40)",
    "slow memory bomb": "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
    "loop that ignores signals": "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True: pass",
    "sleep": "import time\ntime.sleep(1e6)",
    "stop itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "endless output": "while True:\n    print('x' * 100000)",
    "endless results": "import os\nwhile True:\n    os.write(4, b'x' * 60000)",
    "leave before the tests": "import os\nos._exit(0)",
    "exit in words": "import sys, atexit\natexit.register(lambda: print('1.0 PASS'))\nsys.exit(0)",
    "equal to everything": "class E(int):\n    def __eq__(self, o): return True\ndef add(a, b): return E(7)",
    "patched json": "import json\njson.dumps = lambda *a, **k: '{}'\ndef add(a, b): return 7",
    "forged frames": 'import os\nos.write(4, b\'{"case": 0, "value": {"int": "0x5"}}\\n\' * 2)\n' + HONEST,
    "forged wrong frames": "import os\nos.write(4, b'{\"script\": 1}\\n')\ndef add(a, b): return 7",
    "deep result": "def add(a, b):\n    x = []\n    for _ in range(100000): x = [x]\n    return x",
    "data of no kind": 'import os\nos.write(4, b\'{"case": 0, "value": [5]}\\n\')\nos._exit(0)',
    "half a number": 'import os\nos.write(4, b\'{"case": 0, "value": {"complex": []}}\\n\')\nos._exit(0)',
    "deep frame": "import os\nos.write(4, b'[' * 100000 + b'\\n')\nos._exit(0)",
    "giant integer": "def add(a, b): return 10 ** 3000000",
    "not a number": "def add(a, b): return float('nan')",
    "True for 1": "def add(a, b): return True if a == 2 else False",
    "float for an integer": "def add(a, b): return float(a + b)",
    "crash": "import ctypes\nctypes.string_at(0)",
    "stack overflow": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "threads": "import threading, time\nfor _ in range(1000):\n    threading.Thread(target=time.sleep, args=(99,)).start()",
    "kill everything": "import os\nos.kill(-1, 9)\ndef add(a, b): return 7",
    "kill process 1": "import os, time\nos.kill(1, 9)\ntime.sleep(0.2)\nraise SystemExit",
    "terminal escapes": "raise ValueError('\\x1b[2J\\x00 oops')",
    "wrong": "def add(a, b): return a - b",
    "no such function": "def sub(a, b): return a - b",
    "no syntax": "def add(a, b) return",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_are_incorrect(name: str) -> None:
    verdict = verify(ADD, HOSTILE[name], cpu_seconds=1, wall_seconds=1.5)
    assert verdict.outcome is Outcome.INCORRECT, verdict
    assert verdict.reason.isprintable()


ESCAPES = {
    "write to home": "open(GIVEN['home'] + '/canary', 'w')",
    "write to the interpreter": "open(os.__file__, 'a')",
    "write outside /tmp": "open('/canary', 'w')",
    "read the repository": "open(GIVEN['file']).read()",
    "delete the interpreter": "os.remove(os.__file__)",
    "connect to the host": "socket.create_connection(('127.0.0.1', GIVEN['port']), 1)",
    "unix socket": "socket.socket(socket.AF_UNIX)",
    "see the parent": "os.kill(GIVEN['pid'], 0)",
    "read /proc": "open('/proc/self/status').read()",
    "write core_pattern": "open('/proc/sys/kernel/core_pattern', 'w')",
    "mount": "must(libc.mount(b'x', b'/tmp', b'tmpfs', 0, None))",
    "new user namespace": "must(libc.unshare(0x10000000))",
    "new namespace by clone": "must(libc.syscall(56 if os.uname().machine == 'x86_64' else 220, 0x10000000 | 17, 0, 0, 0, 0))",
    "clone3": "must(libc.syscall(435, 0, 0))",
    "io_uring": "must(libc.syscall(425, 1, 0))",
    "ptrace": "must(libc.ptrace(0, 0, 0, 0))",
    "keyring": "must(libc.syscall(250 if os.uname().machine == 'x86_64' else 219, 0, -3, 1))",
    "become root": "os.setuid(0)",
    "chroot": "os.chroot('/tmp')",
    "leave by an open descriptor": "[os.fstat(n) for n in range(6, 64) if _open(n)][0]",
    "fill the disk": "open('/tmp/x', 'wb').write(b'x' * (1 << 27))",
    "fill the inodes": "[open(f'/tmp/{n}', 'w').close() for n in range(5000)]",
}

INSIDE = """
import ctypes, json, os, signal, socket, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
GIVEN = json.loads(os.read(3, 65536))
libc = ctypes.CDLL(None, use_errno=True)
def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
def _open(n):
    try:
        os.fstat(n)
        return True
    except OSError:
        return False
try:
    exec(GIVEN["attack"])
    os.write(4, b"got out")
except (OSError, IndexError) as error:
    os.write(4, b"held")
"""


@pytest.mark.parametrize("name", ESCAPES)
def test_the_box_holds(name: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = {
            "attack": ESCAPES[name],
            "home": str(tmp_path),
            "file": __file__,
            "port": server.getsockname()[1],
            "pid": os.getpid(),
        }
        ran = sandbox.run(INSIDE, json.dumps(given).encode())
    assert ran.results == b"held", ran
    assert not list(tmp_path.iterdir())


def test_a_daemon_does_not_outlive_its_box() -> None:
    """It holds a pipe open as long as it lives; the pipe's end tells, and nobody waits for it."""
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1e6)\n    os._exit(0)"
    ran = sandbox.run(daemon, b"")
    assert ran.ended == "exit" and ran.code == 0


def test_a_box_dies_with_a_killed_verifier() -> None:
    code = (
        "import sys; from distill.verifiers import sandbox; sandbox.probe(); print('up', flush=True)\n"
        "sandbox.run('import ctypes, time; ctypes.CDLL(None).prctl(1, 0); time.sleep(1e6)', b'')"
    )
    verifier = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, pass_fds=()
    )
    assert verifier.stdout and verifier.stdout.readline() == b"up\n"
    children = lambda: Path(f"/proc/{verifier.pid}/task/{verifier.pid}/children").read_text().split()  # noqa: E731
    while not (launcher := children()):
        pass
    first = Path(f"/proc/{launcher[0]}/task/{launcher[0]}/children")
    while not (inside := first.read_text().split()):
        pass
    descriptor = os.pidfd_open(int(inside[0]))
    verifier.kill()
    verifier.communicate()
    import select

    assert select.select([descriptor], [], [], 30.0)[0]
    os.close(descriptor)


@pytest.mark.parametrize(
    ("reference", "code", "outcome", "level"),
    [
        (ADD, HONEST, "correct", "strong"),
        ({"asserts": ["assert add(1, 2) == 3", "assert add(b=1, a=1) == 2"]}, HONEST, "correct", "strong"),
        ({"asserts": ["assert add(1, 2) == 4"]}, HONEST, "incorrect", "strong"),
        ({"asserts": ["assert add(1, 2) == sum([1, 2])"]}, HONEST, "correct", "weak"),
        ({"asserts": ["assert add(1, 2) == sum([1, 3])"]}, HONEST, "incorrect", "weak"),
        ({"stdio": [{"input": "2 3\n", "output": "5"}]}, "print(sum(map(int, input().split())))", "correct", "strong"),
        (
            {"stdio": [{"input": "2 3\n", "output": "6"}]},
            "print(sum(map(int, input().split())))",
            "incorrect",
            "strong",
        ),
    ],
)
def test_the_forms_of_tests(reference: object, code: str, outcome: str, level: str) -> None:
    verdict = verify(reference, code)
    assert (verdict.outcome, verdict.evidence["level"]) == (outcome, level), verdict


@pytest.mark.parametrize(
    "reference", ["", "[]", "{}", '{"entry_point": "f", "cases": []}', '{"asserts": ["x ("]}', "[" * 10**5]
)
def test_a_reference_without_tests_is_unverifiable(reference: str) -> None:
    problem = Problem("p", "?", reference, "code", "test")
    assert judge(build("code"), problem, HONEST).outcome is Outcome.UNVERIFIABLE


def test_asserts_become_data() -> None:
    test = "def check(candidate):\n    assert candidate([1], k=2) == (3,)\n    assert abs(candidate(1) - 0.5) < 1e-6\n"
    cases, whole = cases_of_check(test + "    assert not candidate('')\n    assert True\n")
    assert whole and [(c.call, c.expected, c.tolerance, c.truth) for c in cases] == [
        ("([[1]], {'k': 2})", (3,), None, None),
        ("([1], {})", 0.5, 1e-6, None),
        ("([''], {})", None, None, False),
    ]
    name, cases, whole = cases_of_asserts(["assert f(1) == g(2)", "assert set(f(1)) == {1}"])
    assert name == "f" and not cases and not whole


def test_no_sandbox_is_one_error_that_names_the_probe_and_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "LAUNCHER", Path("/nonexistent/box.py"))
    sandbox.probe.cache_clear()
    try:
        with pytest.raises(sandbox.SandboxError, match=r"self-test.*allow user namespaces"):
            verify(ADD, HONEST)
    finally:
        sandbox.probe.cache_clear()


def test_humaneval_solutions_are_right_and_shifted_ones_wrong() -> None:
    path = DATA / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip("HumanEval is not here")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()][::4]
    items = []
    for index, row in enumerate(rows):
        reference = json.dumps({key: row[key] for key in ("entry_point", "prompt", "test")})
        problem = Problem(row["task_id"], row["prompt"], reference, "code", "humaneval")
        items.append(((index, "own"), "code", problem, row["canonical_solution"]))
        items.append(((index, "shifted"), "code", problem, rows[index - 1]["canonical_solution"]))
    with VerifierPool(workers=2) as pool:
        verdicts = dict(pool.verify_many(items))
    for (_, whose), verdict in verdicts.items():
        assert verdict.outcome is (Outcome.CORRECT if whose == "own" else Outcome.INCORRECT), verdict
