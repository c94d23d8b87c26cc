"""The database of a store, opened: whoever has to wait for others waits a moment, and then says for whom.

DuckDB lets one writing process exclude all others, readers included. Inside of one process it refuses a connection
that reads beside one that writes, and would let two threads write at once; here the first waits like any other
process, and writers come one after the other (`alone`). What an error means is told here; what is done about it
is `distill.store.store`'s.
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

from pipeline.errors import Exit, InputError, PipelineError
from pipeline.files import disk_errors

if TYPE_CHECKING:
    import duckdb

LOCKED = re.compile("could not set lock on file|conflicting lock is held", re.IGNORECASE)
IN_USE_HERE = "different configuration than existing connections"
"""What DuckDB says where this process reads and is to write, or the other way round."""
DISK = re.compile("no space|quota exceeded|file too large|read-only file|permission denied", re.IGNORECASE)
DAMAGE = re.compile(
    r"corrupt database file|could not read enough bytes|journal/\w+/[-\w]+\.parquet|parquet.*corrupt|zstd",
    re.IGNORECASE | re.DOTALL,
)
MEMORY = re.compile("not enough memory", re.IGNORECASE)
"""What zstd says where memory is short, in the midst of words of damage."""
PAUSE = 0.05

_connecting = threading.Lock()
"""Held for the moment of connecting: DuckDB hands a database that one thread is opening to another half made."""
_writers: defaultdict[Path, threading.RLock] = defaultdict(threading.RLock)


class Busy(PipelineError):
    exit_code = Exit.AGAIN


class NoMemory(PipelineError):
    """The machine is short of memory; the file that was being read may well be whole."""

    def __init__(self, path: Path, error: BaseException) -> None:
        said = first_line(error)
        super().__init__(f"{path}: not enough memory to read it ({said}); free some and run the same command again")


class Damaged(InputError):
    """The store's file cannot be read; `Store.mend` remakes it."""


@contextmanager
def alone(path: Path, patience: float) -> Iterator[None]:
    """No other thread of this process writes to the database at ``path`` meanwhile."""
    lock = _writers[path.absolute()]
    if not lock.acquire(timeout=patience):
        raise Busy(f"{path}: another thread of this process writes to it; run this again")
    try:
        yield
    finally:
        lock.release()


def connect(path: Path, patience: float, read_only: bool = False) -> duckdb.DuckDBPyConnection:
    """Connect, waiting while another process, or another thread of this one, holds the file. `Busy` where that takes
    longer than ``patience`` seconds; DuckDB's errors come through."""
    import duckdb

    deadline = time.monotonic() + patience
    while True:
        try:
            with disk_errors(path), _connecting:
                connection = duckdb.connect(
                    str(path), read_only=read_only, config={"autoinstall_known_extensions": "false"}
                )
                connection.execute("SET enable_progress_bar = false")  # it would stand among the rows
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
    """Tell the views in which directory the journal lies."""
    connection.execute("SET VARIABLE workspace = ?", [str(workspace.absolute())])


def tune(connection: duckdb.DuckDBPyConnection) -> None:
    """Checkpoints come once, at the end of an ingest, and zstd makes text five times smaller: both
    measured, see docs/design/002-store.md."""
    connection.execute("SET wal_autocheckpoint = '8GB'")
    connection.execute("SET force_compression = 'zstd'")


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
