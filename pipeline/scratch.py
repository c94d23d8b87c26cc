"""Directories for work in progress that nobody is to find afterwards, and the sweeping of what was left behind.

A process that is killed leaves its directory; whoever next works under the same name takes it away. That it is
abandoned is told by a lock of the kernel's, which dies with its holder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import TEMPORARY, disk_errors, make_directory

YOUNG = 60.0
"""Seconds for which a directory without a lock may still be on its way to one."""


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """A new directory ``.tmp-NAME-*`` in ``parent``, gone at the end, however that comes."""
    make_directory(parent)
    prefix = f"{TEMPORARY}{name}-"
    for left in parent.glob(f"{glob_escape(prefix)}*"):
        sweep_directory(left)
    with disk_errors(parent / name):
        directory = parent / f"{prefix}{uuid.uuid4().hex[:8]}"  # tempfile's are for their owner alone
        directory.mkdir()
        descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def glob_escape(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def sweep_directory(directory: Path) -> bool:
    """Delete an abandoned directory of `scratch`; True if it was one."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - os.fstat(descriptor).st_mtime < YOUNG:
            return False
        shutil.rmtree(directory, ignore_errors=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
