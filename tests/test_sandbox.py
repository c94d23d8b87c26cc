"""The sandbox: what each backend contains, as this user and, when tests run as root, as an ordinary user too."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import hostile_programs
import pytest

from distill.types import Failure, Outcome
from distill.verifiers import build, sandbox
from distill.verifiers.run import judge
from distill.verifiers.sandbox import launcher, selftest
from pipeline.errors import InputError

ROOT = Path(__file__).parents[1]
FAULTS = sandbox.survey()
NOBODY = 65534


@pytest.fixture(params=selftest.IN_ORDER)
def backend(request: pytest.FixtureRequest) -> str:
    if fault := FAULTS[request.param]:
        pytest.skip(f"{request.param}: {fault}")
    return request.param


def holds(result: dict[str, Any], backend: str) -> None:
    """Every program is incorrect, nothing is written or left running, and the verifier still works."""
    wrong = {name: verdict for name, verdict in result["verdicts"].items() if verdict[0] != "incorrect"}
    assert not wrong and len(result["verdicts"]) > 35
    assert all(verdict[1].isprintable() for verdict in result["verdicts"].values())
    assert {verdict[2] for verdict in result["verdicts"].values()} == {backend}
    assert result["written"] == [] and result["running"] == [] and result["intact"]
    assert [verdict[0] for verdict in result["honest"]] == ["correct", "correct"], result["honest"]


def test_hostile_programs_are_contained(backend: str) -> None:
    result = hostile_programs.run(backend, cheats=backend == sandbox.choose())
    holds(result, backend)
    assert backend != sandbox.choose() or len(result["verdicts"]) > 75


def ordinary(program: list[str]) -> subprocess.CompletedProcess[str]:
    """Run Python as another user, with an interpreter that everybody may read."""
    python = "/usr/bin/python3"
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("these tests already run as an ordinary user, or setpriv is missing")
    version = subprocess.run([python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
    if version.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip(f"{python} is not the Python of these tests, and theirs may be below /root")
    paths = [str(ROOT), str(ROOT / "tests"), *(path for path in sys.path if path.endswith("site-packages"))]
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", python, "-B", *program]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/tmp", timeout=300)


def test_hostile_programs_are_contained_for_an_ordinary_user(backend: str) -> None:
    done = ordinary([str(ROOT / "tests" / "hostile_programs.py"), backend])
    assert done.returncode == 0, done.stderr
    holds(json.loads(done.stdout), backend)


def test_unsafe_runs_for_an_ordinary_user_and_leaves_no_daemon() -> None:
    code = (
        "import hostile_programs as h; from distill.verifiers import sandbox as s\n"
        "daemon = 'import os, time\\nos.fork() or (os.setsid(), os.fork() or time.sleep(1e6))\\nos.write(4, b\"here\")'\n"
        "ran = s.run(daemon, b'', limits=s.Limits(processes=64, threads=4096), sandbox='unsafe')\n"
        "s.close(); print(ran.sandbox, ran.results.decode()[:4], h.running())"
    )
    done = ordinary(["-c", code])
    assert done.stdout.strip() == "unsafe here []", done


def test_unsafe_is_refused_for_root_and_never_chosen() -> None:
    assert "unsafe" not in selftest.IN_ORDER
    if os.geteuid() == 0:
        with pytest.raises(sandbox.SandboxError, match=r"unsafe: .*refused for root"):
            sandbox.choose("unsafe")


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
    "new namespace by clone": "must(libc.syscall(56 if X86 else 220, 0x10000000 | 17, 0, 0, 0, 0))",
    "clone3": "must(libc.syscall(435, 0, 0))",
    "fork": "os.fork()",
    "vfork": "import subprocess; subprocess.run(['/usr/bin/true'])",
    "io_uring": "must(libc.syscall(425, 1, 0))",
    "ptrace": "must(libc.ptrace(0, 0, 0, 0))",
    "keyring": "must(libc.syscall(250 if X86 else 219, 0, -3, 1))",
    "shared memory": "must(libc.shmget(0, 4096, 0o1777))",
    "memory without an address": "must(libc.syscall(319 if X86 else 279, b'x', 0))",
    "become root": "os.setuid(0)",
    "chroot": "os.chroot('/tmp')",
    "leave by an open descriptor": "[os.fstat(n) for n in range(5, 4096) if _open(n)][0]",
    "a file that is too large": "open('/tmp/x', 'wb').write(b'x' * (1 << 27))",
    "fill the disk": "[open(f'/tmp/{n}', 'wb').write(bytes(1 << 23)) for n in range(10)]",
    "fill the inodes": "[open(f'/tmp/{n}', 'w').close() for n in range(5000)]",
    "bind a port": "must(libc.syscall(41 if X86 else 198, 2, 1, 0))",
}

INSIDE = """
import ctypes, json, os, signal, socket, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
GIVEN = json.loads(os.read(3, 65536))
X86 = os.uname().machine == "x86_64"
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


def test_the_sandbox_blocks_every_escape(backend: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name, attack in ESCAPES.items():
            port = server.getsockname()[1]
            given = {"attack": attack, "home": str(tmp_path), "file": __file__, "port": port, "pid": os.getpid()}
            ran = sandbox.run(INSIDE, json.dumps(given).encode(), sandbox=backend)
            assert ran.results == b"held", (name, ran)
    assert not list(tmp_path.iterdir())


def test_allowed_child_processes_end_with_their_sandbox(backend: str) -> None:
    """With forking allowed, the pid namespace bounds fork bombs and leaves no daemon."""
    several = sandbox.Limits(cpu_seconds=1, wall_seconds=0.3, processes=8)
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(1e6)\n    os._exit(0)"
    ran = sandbox.run(daemon, b"", limits=several, sandbox=backend)
    assert (ran.ended, ran.code) == ("exit", 0)
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert sandbox.run(bomb, b"", limits=several, sandbox=backend).ended in ("wall", "cpu", "busy")
    sandbox.close()
    assert hostile_programs.running() == []


def test_one_run_leaves_nothing_to_the_next(backend: str) -> None:
    leave = "import builtins, json, os\nopen('/tmp/left', 'w').write('x')\nbuiltins.left = json.left = 1"
    look = "import builtins, json, os\nos.write(4, repr((os.listdir('/tmp'), hasattr(builtins, 'left'), hasattr(json, 'left'))).encode())"
    sandbox.run(leave, b"", sandbox=backend)
    assert sandbox.run(look, b"", sandbox=backend).results == b"([], False, False)"


def test_runs_from_several_threads_do_not_mix(backend: str) -> None:
    echo = "import os, sys\nos.write(4, os.read(3, 100)); print(sys.stdin.read())"
    found: dict[int, tuple[bytes, bytes]] = {}

    def work(name: int) -> None:
        ran = sandbox.run(echo, b"payload %d" % name, b"input %d" % name, sandbox=backend)
        found[name] = ran.results, ran.stdout

    threads = [threading.Thread(target=work, args=(name,)) for name in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: (b"payload %d" % name, b"input %d\n" % name) for name in range(12)}


def test_sets_have_one_order_in_every_run(backend: str) -> None:
    order = "import os\nos.write(4, repr({'a', 'b', 'c', 'd', 'e', 'f'}).encode())"
    assert len({sandbox.run(order, b"", sandbox=backend).results for _ in range(3)}) == 1


def test_a_killed_server_is_started_again() -> None:
    sandbox.run("pass", b"")
    process = launcher._SERVER._process
    assert process
    process.kill()
    process.wait()
    assert sandbox.run("import os\nos.write(4, b'again')", b"").results == b"again"


def test_a_forked_verifier_has_its_own_server() -> None:
    sandbox.run("pass", b"")
    child = os.fork()
    if child == 0:
        ran = sandbox.run("import os\nos.write(4, b'mine')", b"")
        sandbox.close()
        os._exit(0 if ran.results == b"mine" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sandbox.run("import os\nos.write(4, b'still here')", b"").results == b"still here"


def tree(process: int) -> list[int]:
    """A process and its living descendants, without zombies."""
    if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
        return []
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(inner for child in children for inner in tree(int(child)))]


def descendants(verifier: subprocess.Popen[bytes], least: int) -> list[int]:
    """Descriptors of a process's descendants, as soon as there are so many."""
    descriptors: list[int] = []
    while len(descriptors) < least:
        assert verifier.poll() is None
        for descriptor in descriptors:
            os.close(descriptor)
        descriptors = []
        with suppress(FileNotFoundError, ProcessLookupError):
            descriptors += [os.pidfd_open(process) for process in tree(verifier.pid)[1:]]
    return descriptors


def all_end(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 30.0)[0]
        os.close(descriptor)


def test_a_sandbox_dies_with_a_killed_verifier(backend: str) -> None:
    code = (
        f"from distill.verifiers import sandbox; sandbox.choose({backend!r}); print('up', flush=True)\n"
        "sandbox.run('import ctypes, os, time; ctypes.CDLL(None).prctl(1, 0); time.sleep(1e6)', b'',"
        f" sandbox={backend!r})"
    )
    verifier = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    assert verifier.stdout and verifier.stdout.readline() == b"up\n"
    # server, process 1, candidate; for bubblewrap its launcher and bwrap itself, too
    descriptors = descendants(verifier, {"namespaces": 3, "bubblewrap": 5}[backend])
    verifier.kill()
    verifier.communicate()
    all_end(descriptors)


@pytest.fixture
def shared_directory() -> Iterator[Path]:
    """A directory that everybody can reach, and not below /tmp, which root's launcher covers."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


def test_what_bwrap_leaves_behind_ends_with_a_killed_server(shared_directory: Path) -> None:
    """Bwrap's child waits for bwrap's word before anything ties it to bwrap, and nobody else gives it."""
    if all(FAULTS[name] for name in selftest.IN_ORDER):
        pytest.skip("no sandbox works here, and root's launcher needs the same rights")
    stand_in = shared_directory / "bwrap"
    stand_in.write_text("#!/bin/sh\nsleep 1000000 &\nexec sleep 1000000\n")
    stand_in.chmod(0o755)
    code = (
        "from distill.verifiers.sandbox import launcher\n"
        "launcher.run_with('bubblewrap', 'pass', b'', b'', launcher.Limits())"
    )
    path = {"PATH": f"{shared_directory}:{os.environ['PATH']}"}
    verifier = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | path, stderr=subprocess.DEVNULL
    )
    descriptors = descendants(verifier, 4)  # server, launcher, and two for bwrap
    signal.pidfd_send_signal(descriptors[0], signal.SIGKILL)
    all_end(descriptors)
    assert verifier.wait() == 1  # the box was lost


def test_waiting_for_a_cpu_does_not_count_as_time(backend: str) -> None:
    """Many programs at once, with less wall time each than they take together: the machine is busy, but none is late."""
    work = "import time\nwhile time.process_time() < 0.3: pass"
    limits = sandbox.Limits(wall_seconds=1.0)
    found = at_once(lambda: sandbox.run(work, b"", limits=limits, sandbox=backend).ended)
    # If waiting counted, all would be late. The kernel's count of it is not exact, so that one may be.
    assert found.count("exit") > len(found) / 2, found


def at_once(work: Callable[[], str]) -> list[str]:
    """The results of many runs at the same time."""
    many = 5 * (os.cpu_count() or 1)
    with ThreadPoolExecutor(many) as pool:
        return list(pool.map(lambda _: work(), range(many)))


@pytest.fixture
def first(shared_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes bwrap do something else first."""
    if FAULTS["bubblewrap"]:
        pytest.skip(f"bubblewrap: {FAULTS['bubblewrap']}")
    stand_in, real = shared_directory / "bwrap", shutil.which("bwrap")
    stand_in.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(shared_directory), prepend=os.pathsep)

    def put(command: str) -> None:
        stand_in.write_text(f'#!/bin/sh\n{command}\nexec {real} "$@"\n')

    return put


def test_the_time_that_a_box_takes_is_not_the_program_s(first: Callable[[str], None]) -> None:
    first("sleep 1.5")
    limits = sandbox.Limits(wall_seconds=1.0)
    assert sandbox.run("pass", b"", limits=limits, sandbox="bubblewrap").ended == "exit"
    assert sandbox.run("import time\ntime.sleep(9)", b"", limits=limits, sandbox="bubblewrap").ended == "wall"


@pytest.mark.parametrize(
    ("command", "failure", "reason"),
    [
        ("sleep 1000000", Failure.TIMEOUT, "the machine was too busy to run it"),
        ("exit 1", Failure.CRASH, "the sandbox failed: the box was lost"),
    ],
)
@pytest.mark.parametrize("reference", [hostile_programs.ADD, hostile_programs.SCRIPT], ids=["cases", "asserts"])
def test_nor_is_a_box_that_never_comes(
    reference: Any, command: str, failure: Failure, reason: str, first: Callable[[str], None]
) -> None:
    first(command)
    code = build({"code": {"sandbox": "bubblewrap", "wall_seconds": 0.5}})
    verdict = judge(code, json.dumps(reference), f"```python\n{hostile_programs.HONEST}```")
    assert (verdict.outcome, verdict.failure, verdict.reason) == (Outcome.UNVERIFIABLE, failure, reason)


MEMORY_GROUPS = (  # the group of all, its limit on memory, and on memory with swap (version 1) or on swap (2)
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", ("memory.memsw.limit_in_bytes", 1 << 28)),
    (Path("/sys/fs/cgroup"), "memory.max", ("memory.swap.max", 0)),
)


@pytest.fixture
def too_little_memory() -> Iterator[str]:
    """The file to which a process writes 0 to have, together with its children, a quarter of a gigabyte."""
    for parent, limit, (swap, most) in MEMORY_GROUPS:
        group = parent / f"distill-test-{os.getpid()}"
        try:
            (parent / "cgroup.procs").stat()
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(1 << 28))
                with suppress(OSError):  # there is none
                    (group / swap).write_text(str(most))
                yield str(group / "cgroup.procs")
                return
        finally:
            group.rmdir()
    pytest.skip("no group with a limit on memory can be made here")


def test_a_program_killed_because_the_machine_has_no_memory_left_is_not_incorrect(
    backend: str, too_little_memory: str
) -> None:
    """Its own limit is far away."""
    answer = "def add(a, b):\n    x = bytearray(b'x') * (1 << 29)\n    return a + b"
    code = (
        "import json, hostile_programs as h\nfrom distill.verifiers import build, judge\n"
        f"code, answer = build({{'code': {{'sandbox': {backend!r}}}}}), {answer!r}\n"
        f"open({too_little_memory!r}, 'w').write('0')\n"
        "for tests in (h.ADD, h.SCRIPT):\n"
        "    for text in (answer, 'import os\\nos.kill(os.getpid(), 9)', h.HONEST):\n"
        "        found = judge(code, json.dumps(tests), f'```python\\n{text}\\n```')\n"
        "        print(found.outcome.value, found.failure, found.reason, sep=': ')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == said[3] == "unverifiable: memory: the machine ran out of memory"
    assert [line.partition(":")[0] for line in said] == 2 * ["unverifiable", "incorrect", "correct"], said


def test_a_test_script_is_not_late_because_the_answer_waits_for_a_cpu(backend: str) -> None:
    """They run in two boxes, and the test has nothing to do until the answer has."""
    reference = {"entry_point": "add", "asserts": ["assert add(2, 3) == sum([2, 3])"]}
    answer = "import time\ndef add(a, b):\n    while time.process_time() < 0.5: pass\n    return a + b"
    code = build({"code": {"sandbox": backend, "wall_seconds": 0.9}})
    found = at_once(lambda: judge(code, json.dumps(reference), f"```python\n{answer}\n```").reason)
    assert sum("wall time" in reason for reason in found) < len(found) / 2, found


def test_without_any_sandbox_the_error_names_each_backend_s_fault_and_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "HERE", Path("/nonexistent"))
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("DISTILL_SANDBOX", raising=False)
    sandbox.close()
    selftest.fault_of.cache_clear()
    try:
        with pytest.raises(sandbox.SandboxError) as caught:
            sandbox.choose()
    finally:
        sandbox.close()
        selftest.fault_of.cache_clear()
    message = str(caught.value)
    assert "namespaces: the launcher does not start (allow user namespaces" in message
    assert "bubblewrap: bwrap is not installed (apt install bubblewrap" in message and "\n" not in message


def test_a_backend_that_fails_its_self_test_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        selftest, "PROBE", selftest.PROBE.replace('held["no capabilities"] =', 'held["no capabilities"] = not')
    )
    selftest.fault_of.cache_clear()
    try:
        with pytest.raises(sandbox.SandboxError, match="the self-test broke out: no capabilities"):
            sandbox.choose("namespaces")
    finally:
        selftest.fault_of.cache_clear()


def test_a_backend_is_chosen_by_name_or_by_the_environment(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sandbox.choose(backend) == backend
    monkeypatch.setenv("DISTILL_SANDBOX", backend)
    assert sandbox.choose() == backend
    monkeypatch.setenv("DISTILL_SANDBOX", "docker")
    with pytest.raises(InputError, match="unknown sandbox 'docker'"):
        sandbox.choose()
    assert sandbox.choose(backend) == backend
    with pytest.raises(InputError, match="'jail'"):
        build({"code": {"sandbox": "jail"}})
