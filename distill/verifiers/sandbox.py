"""A box to run model-written code in: no network, no files, no other processes, and limits on everything.

`run` starts a program of ours in the box (`distill.verifiers.box`), gives it a payload and reads what it
sends back. What comes back was in the hands of the candidate: it is data to be judged in this process,
never a verdict. Expected answers do not enter the box.

There is one backend today, Linux namespaces with seccomp and rlimits, in pure Python. It is tried once
per process by small attacks on itself, and refused as a whole where one of them succeeds: `run` then
raises `SandboxError`, which names the failed probe and the fix. There is no fallback.
"""

from __future__ import annotations

import functools
import json
import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import PipelineError

LAUNCHER = Path(__file__).with_name("box.py")
PAYLOAD, RESULTS, REPORT = 3, 4, 5
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}


class Limits(NamedTuple):
    """Of one run. Memory is address space per process; output is per pipe."""

    cpu_seconds: int = 5
    wall_seconds: float = 30.0
    memory_bytes: int = 1 << 30
    disk_bytes: int = 64 << 20
    inodes: int = 4096
    processes: int = 16
    open_files: int = 64
    output_bytes: int = 1 << 20


class SandboxError(PipelineError):
    """No safe box can be had here. The message names the failed probe and what to do."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run ended. ``ended`` is "exit", "signal", "wall" or "output"; ``code`` the status or signal."""

    ended: str
    code: int
    stdout: bytes
    results: bytes
    cpu_seconds: float
    memory_kib: int

    @property
    def reason(self) -> str:
        if self.ended == "exit":
            return f"the program ended with status {self.code}"
        if self.ended == "signal":
            return "the CPU time limit" if self.code in (24, 9) else f"killed by signal {self.code}"
        return {"wall": "the wall time limit", "output": "too much output"}[self.ended]


def run(program: str, payload: bytes, stdin: bytes = b"", limits: Limits | None = None) -> Ran:
    """Run ``program`` (Python source, ours) in the box with ``payload`` on descriptor 3, results on 4."""
    probe()
    return _run(program, payload, stdin, limits or Limits())


@functools.cache
def probe() -> str:
    """Attack the box in small ways, once per process; the backend's name, or `SandboxError`."""
    canary = Path(f"/dev/shm/distill-canary-{os.getpid()}")
    started = _run(PROBE, json.dumps({"canary": str(canary), "parent": os.getpid()}).encode(), b"", Limits())
    if canary.exists():
        canary.unlink()
        raise SandboxError(_refusal("a file could be written outside the box"))
    try:
        found = json.loads(started.results)
    except ValueError:
        raise SandboxError(_refusal(f"the self-test gave no result: {started.reason}")) from None
    broken = [name for name, held in found.items() if not held]
    if broken or len(found) != 7:
        raise SandboxError(_refusal(f"the self-test got out: {', '.join(broken)}"))
    return "namespaces"


def _refusal(probe: str) -> str:
    return (
        f"no sandbox for model-written code ({probe}); allow user namespaces"
        " (sysctl kernel.apparmor_restrict_unprivileged_userns=0, or docker run --security-opt seccomp=unconfined),"
        " or leave the code verifier out"
    )


PROBE = """
import json, os, socket, time
given = json.loads(os.read(3, 65536))
held = {}
def holds(name, attack):
    try:
        attack()
        held[name] = False
    except OSError:
        held[name] = True
held["not uid 0"] = 0 not in (os.getuid(), os.geteuid(), os.getgid())
held["own process tree"] = os.getppid() == 1
holds("no network", lambda: socket.socket())
holds("no writing outside", lambda: open(given["canary"], "w"))
holds("no writing to the interpreter", lambda: open(os.__file__, "a"))
holds("no other process", lambda: os.kill(given["parent"], 0))
def forks():
    for _ in range(64):
        if os.fork() == 0:
            time.sleep(60)
holds("a limit on processes", forks)
os.write(4, json.dumps(held).encode())
os._exit(0)
"""


def _settings(program: str, limits: Limits, pipes: list[int]) -> str:
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    visible = {sys.base_prefix, "/usr", "/lib", "/lib64"}
    covered = {path for path in visible if any(path != top and path.startswith(top + "/") for top in visible)}
    settings: dict[str, Any] = {
        "parent": os.getpid(),
        "pipes": pipes,
        "python": python,
        "program": program,
        "visible": sorted(visible - covered),
        "environment": ENVIRONMENT,
        "disk_bytes": limits.disk_bytes,
        "inodes": limits.inodes,
        "rlimits": {
            "RLIMIT_CPU": limits.cpu_seconds,
            "RLIMIT_AS": limits.memory_bytes,
            "RLIMIT_CORE": 0,
            "RLIMIT_FSIZE": limits.disk_bytes,
            "RLIMIT_NOFILE": limits.open_files,
            "RLIMIT_NPROC": limits.processes,
        },
    }
    return json.dumps(settings)


def _run(program: str, payload: bytes, stdin: bytes, limits: Limits) -> Ran:
    inside_stdin, our_stdin = os.pipe()
    inside_payload, our_payload = os.pipe()
    our_results, inside_results = os.pipe()
    our_report, inside_report = os.pipe()
    inside = [inside_payload, inside_results, inside_report]
    ours = [our_stdin, our_payload, our_results, our_report]
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCHER), _settings(program, limits, inside)],
            stdin=inside_stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=inside,
            start_new_session=True,
        )
        for descriptor in (inside_stdin, *inside):
            os.close(descriptor)
        assert process.stdout
        try:
            writes = {our_stdin: stdin, our_payload: payload}
            ended, read = _talk(writes, [process.stdout.fileno(), our_results, our_report], limits)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    finally:
        for descriptor in ours:
            os.close(descriptor)
    return _ran(ended, *read)


def _talk(writes: dict[int, bytes], reads: list[int], limits: Limits) -> tuple[str, list[bytes]]:
    """Feed and drain the pipes until the report, the last of ``reads``, is in: (why it ended, what was read).

    Pipes that something in the box still holds open are not waited for.
    """
    left_to_write = dict(writes)
    heard = {descriptor: bytearray() for descriptor in reads}
    deadline = time.monotonic() + limits.wall_seconds
    ended = ""
    with selectors.DefaultSelector() as selector:
        for descriptor in (*writes, *reads):
            os.set_blocking(descriptor, False)
            selector.register(descriptor, selectors.EVENT_READ if descriptor in heard else selectors.EVENT_WRITE)
        while not ended:
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                if key.fd in left_to_write:
                    _write(key.fd, left_to_write, selector)
                elif chunk := _read(key.fd):
                    heard[key.fd] += chunk
                elif chunk == b"":
                    selector.unregister(key.fd)
                    ended = "exit" if key.fd == reads[-1] else ended
            if any(len(data) > limits.output_bytes for data in heard.values()):
                ended = "output"
            elif time.monotonic() >= deadline:
                ended = ended or "wall"
    for descriptor in reads[:-1]:
        while len(heard[descriptor]) <= limits.output_bytes and (chunk := _read(descriptor)):
            heard[descriptor] += chunk
    return ended, [bytes(heard[descriptor]) for descriptor in reads]


def _read(descriptor: int) -> bytes | None:
    """What is there: None for nothing yet, no bytes for the end."""
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return None


def _write(descriptor: int, left: dict[int, bytes], selector: selectors.BaseSelector) -> None:
    """Write what fits. A pipe that is done stays open until it is closed: the reader waits for its end."""
    try:
        left[descriptor] = left[descriptor][os.write(descriptor, left[descriptor][: 1 << 16]) :]
    except BlockingIOError:
        return
    except OSError:
        left[descriptor] = b""
    if not left[descriptor]:
        selector.unregister(descriptor)
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, descriptor, inheritable=False)
        os.close(null)


def _ran(ended: str, stdout: bytes, results: bytes, report: bytes) -> Ran:
    message = json.loads(report) if report.endswith(b"\n") else {}
    if "failed" in message:
        raise SandboxError(_refusal(message["failed"]))
    code = message.get("code", 0)
    if ended == "exit" and not message:
        ended, code = "signal", 9
    if code < 0:
        ended, code = "signal", -code
    return Ran(ended, code, stdout, results, message.get("cpu", 0.0), message.get("kib", 0))
