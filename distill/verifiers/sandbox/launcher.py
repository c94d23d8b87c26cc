"""Run one program in one box: its pipes, the server that creates boxes, and how the run ended.

The server (`inside/server.py`) is started on demand, one per verifier process, and serves all of its threads. It only
gets our own program, limits and descriptors; candidates and inputs go into the box directly, through the pipes.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from distill.verifiers.sandbox.pipes import Talk, Waiting

HERE = Path(__file__).parent
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
"""The environment in the box. Its hash seed is fixed, so an answer that depends on set order always gets the same
verdict."""
FLAGS = ("-P", "-s", "-S", "-B")
BOOT = """
import sys
sys.path.insert(0, {directory!r})
from inside import {module}
from inside.first import Leave
del sys.path[0]
try:
    {module}.{function}()
except Leave as leave:
    program = str(leave)
exec(compile(program, "program.py", "exec"), {{"__name__": "program"}})
"""


NO_START = "the launcher does not start"


class Limits(NamedTuple):
    """Limits of one run. ``memory_bytes`` (address space) and ``cpu_seconds`` are per process; with one process, the
    default, they bound the whole run. ``wall_seconds`` counts only time in which the program could have run, not time
    spent building its box, or waiting for a CPU on a busy machine. ``output_bytes`` is per pipe."""

    cpu_seconds: int = 5
    wall_seconds: float = 15.0
    memory_bytes: int = 1 << 30
    disk_bytes: int = 64 << 20
    inodes: int = 4096
    processes: int = 1
    threads: int = 16
    open_files: int = 64
    output_bytes: int = 1 << 20


class Refused(Exception):
    """The box could not be built, or was lost; the message names the step."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run ended. ``ended`` is "exit", "signal", "cpu", "wall", "output", or what says nothing about the program:
    "busy" (it got no box or no CPU for very long) or "memory" (the machine had too little). ``code`` is the status or
    the signal."""

    ended: str
    code: int
    stdout: bytes
    results: bytes
    cpu_seconds: float
    memory_kib: int
    sandbox: str

    @property
    def reason(self) -> str:
        return {
            "exit": f"the program ended with status {self.code}",
            "signal": f"killed by signal {self.code}",
            "cpu": "the CPU time limit",
            "wall": "the wall time limit",
            "output": "too much output",
            "busy": "the machine was too busy to run it",
            "memory": "the machine ran out of memory",
        }[self.ended]


def run_with(
    backend: str,
    program: str,
    payload: bytes,
    stdin: bytes,
    limits: Limits,
    wires: tuple[int, ...] = (),
    visible: tuple[str, ...] = (),
    waiting: Waiting | None = None,
) -> Ran:
    """`distill.verifiers.sandbox.run` in a given backend, without its self-test. Raises `Refused`."""
    inside_stdin, our_stdin = os.pipe()
    our_stdout, inside_stdout = os.pipe()
    inside_payload, our_payload = os.pipe()
    our_results, inside_results = os.pipe()
    our_report, inside_report = os.pipe()
    inside_life, our_life = os.pipe()
    inside = [inside_stdin, inside_stdout, inside_payload, inside_results, inside_report, inside_life]
    ours = [our_stdin, our_stdout, our_payload, our_results, our_report, our_life]
    kills = _kills_for_memory()
    try:
        try:
            _SERVER.start(_job(backend, program, limits, visible), [*inside, *wires])
        finally:
            for descriptor in (*inside, *wires):
                os.close(descriptor)
        talk = Talk({our_stdin: stdin, our_payload: payload}, [our_stdout, our_results, our_report], our_life, waiting)
        ended = talk.until_ended(limits.wall_seconds, limits.output_bytes)
    finally:
        for descriptor in ours:
            os.close(descriptor)
    stdout, results, report = talk.received
    ran = _result(backend, ended, stdout, results, report, limits)
    killed = (ran.ended, ran.code) == ("signal", signal.SIGKILL) and _kills_for_memory() > kills
    return replace(ran, ended="memory") if killed else ran


def _result(backend: str, ended: str, stdout: bytes, results: bytes, report: bytes, limits: Limits) -> Ran:
    message: dict[str, Any] = {}
    for line in report.splitlines():
        message |= json.loads(line)
    if "failed" in message:
        raise Refused(message["failed"])
    if ended == "exit" and "code" not in message:
        raise Refused("the box was lost" if "launcher" in message else NO_START)
    code, cpu = message.get("code", 0), message.get("cpu", 0.0)
    if ended == "exit" and code < 0:
        ended, code = "signal", -code
        # SIGXCPU comes at the limit, and SIGKILL a second later if the program ignores it.
        ended = "cpu" if code == 24 or (code == 9 and cpu >= limits.cpu_seconds) else ended
    return Ran(ended, code, stdout, results, cpu, message.get("kib", 0), backend)


def _kills_for_memory() -> int:
    """How many processes of this machine the kernel has killed because memory, or that of a container, ran out."""
    with suppress(OSError), open("/proc/vmstat", "rb") as file:
        return int(file.read().partition(b"\noom_kill ")[2].partition(b"\n")[0] or 0)
    return 0


def _job(backend: str, program: str, limits: Limits, visible: tuple[str, ...]) -> dict[str, Any]:
    shown = {sys.base_prefix, "/usr", "/lib", "/lib64"}
    covered = {path for path in shown if any(path != top and path.startswith(top + "/") for top in shown)}
    base = sorted(shown - covered)
    return {
        "backend": backend,
        "verifier": os.getpid(),  # for people who look at a list of processes
        "program": program,
        "limits": limits._asdict(),
        "visible": dict(zip([*base, *seen(backend, visible)], [*base, *visible], strict=True)),
        "environment": ENVIRONMENT,
        "uid": os.geteuid(),
        "gid": os.getegid(),
        "bwrap": shutil.which("bwrap") if backend == "bubblewrap" else None,
        "seat": [_interpreter(), *FLAGS, "-c", _boot("/box", "bubblewrap", "seat")],
    }


def seen(backend: str, visible: Sequence[str]) -> list[str]:
    """The paths at which a program in the box finds the directories of ``visible``. They are new ones, since the box
    may have something else at the original paths (below /tmp)."""
    return list(visible) if backend == "unsafe" else [f"/packages/{n}" for n in range(len(visible))]


def _interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _boot(directory: str, module: str, function: str) -> str:
    return BOOT.format(directory=directory, module=module, function=function)


class _Server:
    """This process's end of the server, which is started on demand, and again if it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self, job: dict[str, Any], descriptors: list[int]) -> None:
        """Ask the server to start one run. The descriptors are duplicated."""
        message = json.dumps(job).encode()
        with self._lock:
            if self._control is not None:
                with suppress(ConnectionError):
                    socket.send_fds(self._control, [message], descriptors)
                    return
                self._close()
            self._control = self._started()
            try:
                socket.send_fds(self._control, [message], descriptors)
            except ConnectionError:  # it has ended already
                raise Refused(NO_START) from None

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._control is not None and self._process is not None:
            self._control.close()
            self._process.wait()
        self._control = self._process = None

    def _started(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [_interpreter(), *FLAGS, "-c", _boot(str(HERE), "server", "main")]
        self._process = subprocess.Popen(
            [*command, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,  # only the verifier handles Ctrl-C
        )
        theirs.close()
        return ours


_SERVER = _Server()


def close() -> None:
    """End the server. The next run starts a new one."""
    _SERVER.close()


def _forget() -> None:
    """Drop the server in a forked child: it belongs to the parent."""
    global _SERVER
    _SERVER = _Server()


os.register_at_fork(after_in_child=_forget)
atexit.register(close)
