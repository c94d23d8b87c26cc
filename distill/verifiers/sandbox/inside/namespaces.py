"""Backend `namespaces`: mount, pid, network, ipc, uts and user namespaces, in pure Python.

The box has its own root, with the interpreter read-only and an empty /tmp of limited size, but no /proc and no /dev. If
root starts it, the launcher switches to a dedicated uid before anything of the candidate runs. (Measured without that:
a full escape through core_pattern.)
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

from .first import be_first, become_ordinary
from .kernel import (
    BIND,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    NEWUTS,
    NODEV,
    NOSUID,
    PRIVATE,
    RDONLY,
    REC,
    REMOUNT,
    bind_readonly,
    die_with_parent,
    fork_into,
    mount,
    pivot_root_here,
    unshare,
)


def fork() -> int:
    """Fork process 1 of a new box. Its parent is invisible in there, so the lifeline tells it when to end."""
    flags = NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS
    return fork_into(flags if os.geteuid() == 0 else flags | NEWUSER)


def launch(job: dict[str, Any]) -> NoReturn:
    _enter(job)
    be_first(job, "/tmp")


def _enter(job: dict[str, Any]) -> None:
    """Make this process an ordinary user in its own root, for good."""
    root = os.geteuid() == 0 and job["uid"] == 0
    if not root:
        uid, gid = job["uid"], job["gid"]
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    _change_root(job)
    if root:
        become_ordinary()
        unshare(NEWUSER)  # its own user namespace, so that the limit on processes counts only this box
        die_with_parent()  # a change of uid clears it
    if 0 in (*os.getresuid(), *os.getresgid()):
        raise OSError("still uid or gid 0")


def _change_root(job: dict[str, Any]) -> None:
    """Build a root over /proc, a directory that exists everywhere and is no longer needed."""
    top = "/proc"
    mount("none", "/", None, REC | PRIVATE)
    visible = job["visible"].items()
    links = {path: os.readlink(path) for path, source in visible if path == source and os.path.islink(path)}
    kept = {path: source for path, source in visible if path not in links and os.path.isdir(source)}
    mount("box", top, "tmpfs", NOSUID | NODEV, "size=1m,nr_inodes=256,mode=755")
    for path, source in kept.items():
        os.makedirs(top + path, mode=0o755)
        bind_readonly(source, top + path)
    for path, target in links.items():
        os.symlink(target, top + path)
    os.makedirs(top + "/tmp", exist_ok=True)
    limits = job["limits"]
    options = f"size={limits['disk_bytes']},nr_inodes={limits['inodes']},mode=1777"
    mount("tmp", top + "/tmp", "tmpfs", NOSUID | NODEV, options)
    mount("none", top, None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    os.chdir(top)
    pivot_root_here()
    os.chdir("/tmp")
