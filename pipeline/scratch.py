"""Temporary directories for work in progress, and the removal of those that killed processes left behind.

A killed process leaves its directory; the next process that works under the same name removes it. A kernel lock,
which dies with its holder, shows whether a directory is abandoned.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import TEMPORARY, disk_errors, make_directory

YOUNG = 60.0
"""A directory without a lock is taken for abandoned only at this age (seconds): a new one exists before its lock."""


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """A new directory ``.tmp-NAME-*`` in ``parent``, deleted at the end, with or without an error."""
    make_directory(parent)
    prefix = f"{TEMPORARY}{name}-"
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        sweep_directory(left)
    with disk_errors(parent / name):
        directory = parent / f"{prefix}{uuid.uuid4().hex[:8]}"  # tempfile would use mode 0700
        directory.mkdir()
        descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def sweep_directory(directory: Path) -> bool:
    """Delete a directory of `scratch` if it is abandoned; True if it was."""
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
