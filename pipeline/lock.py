"""One run on a workspace at a time: an advisory lock that dies with its holder.

The kernel's `flock`, so a killed run leaves nothing to clean up by hand. The file says who holds it.
Readers (`status`, `traces`) do not wait for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import Exit, InputError, PipelineError
from pipeline.files import disk_errors, make_directory

LOCK = ".lock"
PATIENCE = 1.0
"""Seconds for which somebody may just be looking (`running`)."""
_held: set[int] = set()


def _let_go() -> None:
    """A forked child must not hold the workspace when its parent is killed. (Closing a copy of the
    descriptor leaves the parent's lock alone.)"""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class Held(PipelineError):
    """Another run holds the workspace."""

    exit_code = Exit.AGAIN


@contextmanager
def workspace_lock(
    workspace: Path, *, wait: bool, stopping: Callable[[], bool], command: str = "",
    waiting: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:  # fmt: skip
    """Hold the workspace; raise `Held`, naming the holder, or wait for it, which is told once to ``waiting``."""
    make_directory(workspace)
    path = workspace / LOCK
    with disk_errors(path):
        file = open(path, "a+")  # noqa: SIM115  (closed below: what fails in the run is not the lock's)
    with file:
        began, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                late = time.monotonic() - began > PATIENCE
                if stopping() or (late and not wait):
                    after = "run this again when it has ended (`distill run --wait` waits), or stop it"
                    raise Held(f"{workspace}: in use by {holder(path)}; {after}") from None
                if late and not told:
                    waiting(f"for {holder(path)}, which uses {workspace}")
                    told = True
                time.sleep(0.1)
            except OSError as error:  # of some network and user-space file systems
                text = f"{path}: its file system gives no locks ({error.strerror}); choose a workspace on another"
                raise InputError(text) from None
        started = datetime.now(UTC).isoformat(timespec="seconds")
        info = {"pid": os.getpid(), "host": socket.gethostname(), "started": started, "command": command}
        with disk_errors(path):
            file.truncate(0)
            file.write(json.dumps(info))
            file.flush()
        _held.add(file.fileno())
        try:
            yield
        finally:
            _held.discard(file.fileno())
            file.truncate(0)


def running(workspace: Path) -> int | None:
    """The process of the run that holds the workspace now, if one does. The number alone would not tell: another
    process may have got it since."""
    path = workspace / LOCK
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(path.read_text())["pid"])
    except OSError:
        pass
    return None


def holder(path: Path) -> str:
    """Who holds the lock at ``path``, in words."""
    try:
        info = json.loads(path.read_text())
        return f"process {info['pid']} on {info['host']} since {info['started']} ({info['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
