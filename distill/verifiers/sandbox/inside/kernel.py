"""The few Linux system calls that Python lacks, as functions that raise `OSError` with the step's name."""

from __future__ import annotations

import ctypes
import os
import platform
import signal

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
PDEATHSIG, SECCOMP, NO_NEW_PRIVS = 1, 22, 38

libc = ctypes.CDLL(None, use_errno=True)


def must(step: str, result: int) -> int:
    if result < 0:
        raise OSError(f"{step}: {os.strerror(ctypes.get_errno())}")
    return result


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = [text.encode() if text else None for text in (source, target, kind)]
    must(f"mount {target}", libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None))


def bind_readonly(source: str, target: str) -> None:
    """Bind-mount ``source``, then make it read-only. A flag that the host has locked (noexec) must be kept."""
    mount(source, target, None, BIND)
    locked = os.statvfs(target).f_flag & NOEXEC
    mount("none", target, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV | locked)


def fork_into(flags: int) -> int:
    """`os.fork`, with the child in new namespaces at once; `unshare` would take one more process.

    The C library does not notice this fork, so the thread id that it caches is wrong until the child forks itself.
    """
    api = ctypes.PyDLL(None, use_errno=True)  # keeps the GIL, which the child must hold
    clone = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
    if clone is None:
        raise OSError(f"clone: not known on {platform.machine()}")
    api.PyOS_BeforeFork()
    child = api.syscall(ctypes.c_long(clone), ctypes.c_ulong(flags | signal.SIGCHLD), None, None, None, None)
    if child == 0:
        api.PyOS_AfterFork_Child()
        return 0
    api.PyOS_AfterFork_Parent()
    return must("clone into namespaces", child)


def unshare(flags: int) -> None:
    must("unshare", libc.unshare(flags))


def pivot_root_here() -> None:
    """Make the current directory the root, and unmount the old root."""
    must("pivot_root", libc.pivot_root(b".", b"."))
    must("umount2", libc.umount2(b".", 2))


def die_with_parent() -> None:
    """Have the kernel kill the caller when the thread that forked it ends. A change of uid clears this."""
    must("prctl", libc.prctl(PDEATHSIG, signal.SIGKILL))


def live_without_parent() -> None:
    """Undo `die_with_parent`."""
    must("prctl", libc.prctl(PDEATHSIG, 0))
