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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from distill.store import attaching
from pipeline.errors import Busy, InputError, PipelineError
from pipeline.files import disk_errors

if TYPE_CHECKING:
    import duckdb

LOCKED = re.compile("could not set lock on file|conflicting lock is held", re.IGNORECASE)
IN_USE_HERE = "different configuration than existing connections"
"""DuckDB's error if this process is reading a database that it opens for writing, or the other way round."""
ATTACHED_HERE = "unique file handle conflict"
"""Its error for the same, if one of the two is attached to another database."""
DISK = re.compile("no space|quota exceeded|file too large|read-only file|permission denied", re.IGNORECASE)
DAMAGE = re.compile(
    r"corrupt database file|could not read enough bytes|journal/\w+/[-\w]+\.parquet|parquet.*corrupt|zstd",
    re.IGNORECASE | re.DOTALL,
)
MEMORY = re.compile("not enough memory", re.IGNORECASE)
"""zstd's error if memory is short, in a message that otherwise looks like damage."""
PAUSE = 0.05
Opened = TypeVar("Opened")

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
    takes longer than ``patience`` seconds, `InputError` for errors of the disk, and otherwise DuckDB's own errors.
    To be called within `attaching.own`."""
    import duckdb

    def start() -> duckdb.DuckDBPyConnection | None:
        if not attaching.attached(path):
            return _started(path, read_only)
        if read_only:
            return None
        raise duckdb.ConnectionException(IN_USE_HERE)

    while (connection := _patiently(path, patience, start)) is None:
        time.sleep(PAUSE)  # two who read do not fail one another; no new query attaches the file meanwhile
    return connection


@contextmanager
def querying(path: Path, patience: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection for a query; see `distill.store.attaching`. Waits and raises as `connect`."""
    import duckdb

    start = partial(_started, path, read_only=True)
    connection, end = _patiently(path, patience, lambda: attaching.query(path, start))
    broken = False
    try:
        _prepare(connection, path)
        yield connection
    except (duckdb.FatalException, duckdb.InternalException):
        broken = True
        raise
    finally:
        end(broken)


def _started(path: Path, read_only: bool) -> duckdb.DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(str(path), read_only=read_only, config=attaching.CONFIG)
    _prepare(connection, path)
    return connection


def _prepare(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    connection.execute("SET enable_progress_bar = false")  # it would appear among the rows
    locate(connection, path.parent)


def _patiently(path: Path, patience: float, attempt: Callable[[], Opened]) -> Opened:
    import duckdb

    deadline = time.monotonic() + patience
    while True:
        try:
            with disk_errors(path), attaching.guard:
                return attempt()
        except duckdb.Error as error:
            if (holder := _holder(error)) is None:
                if DISK.search(str(error)):
                    raise InputError(f"{path}: {first_line(error)}") from None
                raise
            if time.monotonic() > deadline:
                raise Busy(f"{path}: held by {holder}; close it there, then run this again") from None
            time.sleep(PAUSE)


def _holder(error: duckdb.Error) -> str | None:
    """Who holds the file, if that is what the error is about."""
    if IN_USE_HERE in str(error) or ATTACHED_HERE in str(error).lower():
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
