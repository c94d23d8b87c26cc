"""Choose a backend that works here. Each is tested with small attacks, once per process, before it runs anything.

`choose` returns the first that passes, or the one that is named if it passes. Otherwise it raises `SandboxError`, whose
message says for each what failed and what to do. Nothing falls back to weaker isolation.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from distill.verifiers.sandbox.launcher import Limits, Refused, run_with
from pipeline.errors import InputError, PipelineError

AUTO = "auto"
BACKENDS = ("namespaces", "bubblewrap", "unsafe")
IN_ORDER = ("namespaces", "bubblewrap")
"""They build the same walls; the first starts boxes several times faster (benchmarks/sandbox.py)."""
VARIABLE = "DISTILL_SANDBOX"

FIXES = {
    "namespaces": "allow user namespaces: sysctl kernel.apparmor_restrict_unprivileged_userns=0,"
    " or docker run --security-opt seccomp=unconfined",
    "bubblewrap": "apt install bubblewrap, with its AppArmor profile",
    "unsafe": "run as an ordinary user",
}


class SandboxError(PipelineError):
    """No safe sandbox is available here. The message names the failed probe of each backend and what to do."""


def choose(sandbox: str = AUTO) -> str:
    """The backend to use, given a backend's name or ``auto`` (then DISTILL_SANDBOX may name one)."""
    wish = os.environ.get(VARIABLE, AUTO) if sandbox == AUTO else sandbox
    if wish not in (AUTO, *BACKENDS):
        raise InputError(f"unknown sandbox {wish!r} (the setting, or {VARIABLE}); use {AUTO}, {', '.join(BACKENDS)}")
    faults = {}
    for name in IN_ORDER if wish == AUTO else (wish,):
        if not (fault := fault_of(name)):
            return name
        faults[name] = fault
    reasons = "; ".join(f"{name}: {fault} ({FIXES[name]})" for name, fault in faults.items())
    raise SandboxError(f"no sandbox for model-written code works here. {reasons}. Or do without the code verifier")


def survey() -> dict[str, str]:
    """What is wrong with each backend except `unsafe`; empty if it works."""
    return {name: fault_of(name) for name in IN_ORDER}


@functools.cache
def fault_of(backend: str) -> str:
    """Attack the backend's box. Returns the probe that failed, or an empty text if all were blocked."""
    if backend == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    canaries = [Path(where) / f"distill-canary-{secrets.token_hex(8)}" for where in (tempfile.gettempdir(), "/dev/shm")]
    given = {"canaries": list(map(str, canaries)), "parent": os.getpid(), "readable": __file__}
    program = PROBE if backend != "unsafe" else "import os; os.write(4, b'{}')"
    try:
        ran = run_with(backend, program, json.dumps(given).encode(), b"", Limits(disk_bytes=1 << 20))
    except (Refused, OSError) as error:
        return str(error)
    if written := [canary for canary in canaries if canary.exists()]:
        for canary in written:
            canary.unlink()
        return "a file could be written outside the box"
    try:
        found = json.loads(ran.results)
    except ValueError:
        return f"the self-test gave no result: {ran.reason}"
    broken = [name for name, held in found.items() if not held]
    if broken or (backend != "unsafe" and len(found) != PROBES):
        return f"the self-test broke out: {', '.join(broken)}"
    return ""


PROBES = 14
PROBE = """
import ctypes, json, os, signal, socket, struct, threading, time
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
given = json.loads(os.read(3, 65536))
libc = ctypes.CDLL(None, use_errno=True)
held = {}
def holds(name, attack):
    try:
        attack()
        held[name] = False
    except (OSError, RuntimeError):
        held[name] = True
def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
def write_outside():
    for path in given["canaries"]:
        if not os.path.realpath(path).startswith("/tmp/"):
            open(path, "w")
            return
    raise OSError("nothing to write to")
def fill():
    with open("/tmp/full", "wb") as file:
        file.write(bytes(1 << 22))
def threads():
    for _ in range(64):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
capabilities = ctypes.create_string_buffer(24)
must(libc.capget(struct.pack("Ii", 0x20080522, 0), capabilities))
held["not uid 0"] = 0 not in (*os.getresuid(), *os.getresgid())
held["no capabilities"] = capabilities.raw == bytes(24)
held["own process tree"] = os.getppid() == 1
holds("no network", lambda: socket.socket())
holds("no writing outside", write_outside)
holds("no writing to the root", lambda: open("/canary", "w"))
holds("no writing to the interpreter", lambda: open(os.__file__, "a"))
holds("no reading of the verifier's files", lambda: open(given["readable"]))
holds("no other process", lambda: os.kill(given["parent"], 0))
holds("no fork", os.fork)
holds("no new namespace", lambda: must(libc.unshare(0x10000000)))
holds("no mount", lambda: must(libc.mount(b"x", b"/tmp", b"tmpfs", 0, None)))
holds("a limit on the disk", fill)
holds("a limit on threads", threads)
os.write(4, json.dumps(held).encode())
os._exit(0)
"""
