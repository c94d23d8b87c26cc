"""One run per workspace at a time: an advisory lock that dies with its holder.

It is the kernel's `flock`, so a killed run leaves nothing to clean up by hand. The file names the holder.
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

from pipeline.errors import Busy, InputError
from pipeline.files import disk_errors, make_directory

LOCK = ".lock"
PATIENCE = 1.0
"""Seconds to keep trying: somebody may hold the lock only for a moment, to look (`running`)."""
_held: set[int] = set()


def _close_in_child() -> None:
    """Close the lock file in a forked child, which must not hold the workspace when its parent is killed. Closing a
    copy of the descriptor leaves the parent's lock alone."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def workspace_lock(
    workspace: Path, *, wait: bool, stopping: Callable[[], bool], command: str = "",
    waiting: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:  # fmt: skip
    """Hold the workspace. If another run holds it, raise `Busy`, which names the holder, or with ``wait`` call
    ``waiting`` once and wait."""
    make_directory(workspace)
    path = workspace / LOCK
    with disk_errors(path):
        file = open(path, "a+")  # noqa: SIM115  (closed below: an OSError of the run itself is not the lock's)
    with file:
        began, announced = time.monotonic(), False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                late = time.monotonic() - began > PATIENCE
                if stopping() or (late and not wait):
                    hint = "" if wait else " (`distill run --wait` waits)"
                    after = f"run this again when it has ended{hint}, or stop it"
                    raise Busy(f"{workspace}: in use by {holder(path)}; {after}") from None
                if late and not announced:
                    waiting(f"for {holder(path)}, which uses {workspace}")
                    announced = True
                time.sleep(0.1)
            except OSError as error:  # on some network and user-space file systems
                text = f"{path}: its file system supports no locks ({error.strerror}); choose a workspace on another"
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
    """The process id of the run that holds the workspace now, or None. The id in the file is not enough: another
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
    """A description of who holds the lock at ``path``."""
    try:
        info = json.loads(path.read_text())
        return f"process {info['pid']} on {info['host']} since {info['started']} ({info['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
