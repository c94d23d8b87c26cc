"""Backend `bubblewrap`: bwrap builds the box, our process 1 runs in it.

Works if the administrator allows only bwrap to create user namespaces (an AppArmor profile, a setuid bwrap). What bwrap
does not do is done from inside, as in the other backend: limits, seccomp, Landlock, a /tmp with a limited number of
files. If root starts it, the launcher gathers the directories that the box shows (the interpreter may lie below /root)
and switches to the dedicated uid before it executes bwrap.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, NoReturn

from .first import be_first, become_ordinary, leave_charge, report, supervise, take_charge
from .kernel import NEWNS, NODEV, NOSUID, PRIVATE, REC, bind_readonly, die_with_parent, mount, unshare

PACKAGE = "/box/inside"
STAGE = "/tmp/box"


fork = os.fork


def launch(job: dict[str, Any]) -> NoReturn:
    take_charge()
    sources = job["visible"] | {PACKAGE: os.path.dirname(os.path.abspath(__file__))}
    links = {path: os.readlink(path) for path, source in sources.items() if path == source and os.path.islink(path)}
    sources = {path: source for path, source in sources.items() if os.path.isdir(source) and path not in links}
    root = os.geteuid() == 0
    if root:
        sources = _gather(sources)
    launcher, box = os.getpid(), os.fork()
    if box:
        supervise(box)
    leave_charge()
    if root:
        become_ordinary()
    die_with_parent()
    if os.getppid() != launcher:
        os._exit(1)
    os.execve(job["bwrap"], _arguments(job, sources, links), job["environment"])


def _gather(sources: dict[str, str]) -> dict[str, str]:
    """Bind-mount everything below one directory that the dedicated uid can reach, in our own mount namespace."""
    unshare(NEWNS)
    mount("none", "/", None, REC | PRIVATE)
    held = {path: os.open(source, os.O_PATH) for path, source in sources.items()}
    mount("box", "/tmp", "tmpfs", NOSUID | NODEV, "size=1m,nr_inodes=256,mode=755")
    for path, directory in held.items():
        os.makedirs(STAGE + path, mode=0o755)
        bind_readonly(f"/proc/self/fd/{directory}", STAGE + path)
        os.close(directory)
    return {path: STAGE + path for path in sources}


def _arguments(job: dict[str, Any], sources: dict[str, str], links: dict[str, str]) -> list[str]:
    arguments = [job["bwrap"], "--unshare-all", "--unshare-user", "--die-with-parent", "--as-pid-1"]
    arguments += ["--cap-add", "CAP_SYS_ADMIN"]  # for one mount, made by our process 1 before the candidate starts
    for path, source in sources.items():
        arguments += ["--ro-bind", source, path]
    for path, target in links.items():
        arguments += ["--symlink", target, path]
    arguments += ["--dir", "/tmp", "--remount-ro", "/", "--chdir", "/tmp", "--"]
    return [*arguments, *job["seat"], json.dumps(job)]


def seat() -> NoReturn:
    """Process 1 of the box that bwrap has built."""
    job = json.loads(sys.argv[1])
    try:
        if 0 in (*os.getresuid(), *os.getresgid()):
            raise OSError("still uid or gid 0")
        limits = job["limits"]
        options = f"size={limits['disk_bytes']},nr_inodes={limits['inodes']},mode=1777"
        mount("tmp", "/tmp", "tmpfs", NOSUID | NODEV, options)
        os.chdir("/tmp")
    except OSError as error:
        report({"failed": str(error)})
        os._exit(1)
    be_first(job, "/tmp")
