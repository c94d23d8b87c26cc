"""Running one program in one box: the pipes, the server that makes boxes, and what ended the run.

The server (`inside/server.py`) is started when first needed, one per verifier process, and serves all of its
threads. Whatever this file hands it are descriptors and limits; programs and inputs go into the box directly.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from distill.verifiers.sandbox.pipes import Talk

HERE = Path(__file__).parent
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
"""Of the box. A fixed hash seed, so that an answer that leans on the order of a set gets one verdict always."""
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


class Limits(NamedTuple):
    """Of one run. ``memory_bytes`` is address space per process; with one process, which is what there is unless
    ``processes`` says otherwise, it bounds the whole run, as ``cpu_seconds`` does. ``wall_seconds`` is time in
    which the program could have run: time that it spends waiting for a busy machine's CPU does not count.
    ``output_bytes`` is per pipe."""

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
    """The box could not be built; the message names the step."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run ended. ``ended`` is "exit", "signal", "cpu", "wall", "output" or "busy" (the machine's fault: the
    program got no CPU for very long); ``code`` is the status or the signal."""

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
        }[self.ended]


def run_with(
    backend: str,
    program: str,
    payload: bytes,
    stdin: bytes,
    limits: Limits,
    wires: tuple[int, ...] = (),
    visible: tuple[str, ...] = (),
) -> Ran:
    """`distill.verifiers.sandbox.run` with a backend that is known to hold. Raises `Refused`."""
    inside_stdin, our_stdin = os.pipe()
    our_stdout, inside_stdout = os.pipe()
    inside_payload, our_payload = os.pipe()
    our_results, inside_results = os.pipe()
    our_report, inside_report = os.pipe()
    inside_life, our_life = os.pipe()
    inside = [inside_stdin, inside_stdout, inside_payload, inside_results, inside_report, inside_life]
    ours = [our_stdin, our_stdout, our_payload, our_results, our_report, our_life]
    try:
        try:
            _SERVER.start(_job(backend, program, limits, visible), [*inside, *wires])
        finally:
            for descriptor in (*inside, *wires):
                os.close(descriptor)
        talk = Talk({our_stdin: stdin, our_payload: payload}, [our_stdout, our_results, our_report], our_life)
        ended = talk.until_ended(limits.wall_seconds, limits.output_bytes)
    finally:
        for descriptor in ours:
            os.close(descriptor)
    stdout, results, report = talk.heard
    return _ran(backend, ended, stdout, results, report, limits)


def _ran(backend: str, ended: str, stdout: bytes, results: bytes, report: bytes, limits: Limits) -> Ran:
    message: dict[str, Any] = {}
    for line in report.splitlines():
        message |= json.loads(line)
    if "failed" in message:
        raise Refused(message["failed"])
    if ended == "exit" and "code" not in message:
        raise Refused("the box was lost" if "launcher" in message else "the launcher does not start")
    code, cpu = message.get("code", 0), message.get("cpu", 0.0)
    if ended == "exit" and code < 0:
        ended, code = "signal", -code
        # SIGXCPU comes at the limit, and SIGKILL a second later to who ignores it.
        ended = "cpu" if code == 24 or (code == 9 and cpu >= limits.cpu_seconds) else ended
    return Ran(ended, code, stdout, results, cpu, message.get("kib", 0), backend)


def _job(backend: str, program: str, limits: Limits, visible: tuple[str, ...]) -> dict[str, Any]:
    shown = {sys.base_prefix, "/usr", "/lib", "/lib64"}
    covered = {path for path in shown if any(path != top and path.startswith(top + "/") for top in shown)}
    base = sorted(shown - covered)
    return {
        "backend": backend,
        "verifier": os.getpid(),  # for who looks at a list of processes
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
    """Where a program in the box finds the directories of ``visible``: at names of their own, since their
    places outside may lie where the box has something else (below /tmp)."""
    return list(visible) if backend == "unsafe" else [f"/packages/{n}" for n in range(len(visible))]


def _interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def _boot(directory: str, module: str, function: str) -> str:
    return BOOT.format(directory=directory, module=module, function=function)


class _Server:
    """This process's end of the server; started on demand, started again if it is gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(self, job: dict[str, Any], descriptors: list[int]) -> None:
        """Have one run started. The descriptors are copied."""
        message = json.dumps(job).encode()
        with self._lock:
            if self._control is not None:
                with suppress(BrokenPipeError, ConnectionError):
                    socket.send_fds(self._control, [message], descriptors)
                    return
                self._close()
            self._control = self._started()
            socket.send_fds(self._control, [message], descriptors)

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
            start_new_session=True,  # Ctrl-C is the verifier's to handle
        )
        theirs.close()
        return ours


_SERVER = _Server()


def close() -> None:
    """End the server of boxes; the next run starts one."""
    _SERVER.close()


def _forget() -> None:
    """In a forked child: the server is the parent's."""
    global _SERVER
    _SERVER = _Server()


os.register_at_fork(after_in_child=_forget)
atexit.register(close)
