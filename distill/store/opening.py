"""Opens the database of a store: waits a moment while others use it, then raises an error that names who does.

In DuckDB, one writing process excludes all others, including readers. Within one process, DuckDB refuses a reading
connection next to a writing one, but would let two threads write at once. Here, the first case waits as for another
process, and writers take turns (`alone`). This module recognises errors; `distill.store.store` handles them.
"""

from __future__ import annotations

import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import Busy, InputError, PipelineError
from pipeline.files import disk_errors

if TYPE_CHECKING:
    import duckdb

LOCKED = re.compile("could not set lock on file|conflicting lock is held", re.IGNORECASE)
IN_USE_HERE = "different configuration than existing connections"
"""DuckDB's error if this process is reading a database that it opens for writing, or the other way round."""
DISK = re.compile("no space|quota exceeded|file too large|read-only file|permission denied", re.IGNORECASE)
DAMAGE = re.compile(
    r"corrupt database file|could not read enough bytes|journal/\w+/[-\w]+\.parquet|parquet.*corrupt|zstd",
    re.IGNORECASE | re.DOTALL,
)
MEMORY = re.compile("not enough memory", re.IGNORECASE)
"""zstd's error if memory is short, in a message that otherwise looks like damage."""
PAUSE = 0.05

_connecting = threading.Lock()
"""Held while connecting: DuckDB would give another thread a database that is only half opened."""
_writers: defaultdict[Path, threading.RLock] = defaultdict(threading.RLock)


class NoMemory(PipelineError):
    """The machine is short of memory; the file that was being read may be intact."""

    def __init__(self, path: Path, error: BaseException) -> None:
        reason = first_line(error)
        super().__init__(f"{path}: not enough memory to read it ({reason}); free some and run the same command again")


class Damaged(InputError):
    """The store's file cannot be read; `Store.mend` remakes it."""


@contextmanager
def alone(path: Path, patience: float) -> Iterator[None]:
    """Keep other threads of this process from writing to the database at ``path``. Waits up to ``patience`` seconds."""
    lock = _writers[path.absolute()]
    if not lock.acquire(timeout=patience):
        raise Busy(f"{path}: another thread of this process is writing to it; run this again")
    try:
        yield
    finally:
        lock.release()


def connect(path: Path, patience: float, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Connect, waiting while another process, or another thread of this one, holds the file. Raises `Busy` if that
    takes longer than ``patience`` seconds, `InputError` for errors of the disk, and otherwise DuckDB's own errors."""
    import duckdb

    deadline = time.monotonic() + patience
    while True:
        try:
            with disk_errors(path), _connecting:
                connection = duckdb.connect(
                    str(path), read_only=read_only, config={"autoinstall_known_extensions": "false"}
                )
                connection.execute("SET enable_progress_bar = false")  # it would appear among the rows
                locate(connection, path.parent)
                return connection
        except (duckdb.IOException, duckdb.ConnectionException) as error:
            if (holder := _holder(error)) is None:
                if DISK.search(str(error)):
                    raise InputError(f"{path}: {first_line(error)}") from None
                raise
            if time.monotonic() > deadline:
                raise Busy(f"{path}: held by {holder}; close it there, then run this again") from None
            time.sleep(PAUSE)


def _holder(error: duckdb.Error) -> str | None:
    """Who holds the file, if that is what the error is about."""
    if IN_USE_HERE in str(error):
        return "another connection of this process"
    if not LOCKED.search(str(error)):
        return None
    held = re.search(r"PID (\d+)", str(error))
    return f"process {held[1]}" if held else "another process"


def locate(connection: duckdb.DuckDBPyConnection, workspace: Path) -> None:
    """Set the directory in which the views find the journal."""
    connection.execute("SET VARIABLE workspace = ?", [str(workspace.absolute())])


def tune(connection: duckdb.DuckDBPyConnection) -> None:
    """Checkpoint only once, at the end of an ingest, and compress with zstd, which makes text five times smaller.
    Both were measured: docs/design/002-store.md."""
    connection.execute("SET wal_autocheckpoint = '8GB'")
    connection.execute("SET force_compression = 'zstd'")


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
