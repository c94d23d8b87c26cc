"""The store's own queries: one DuckDB for all of a process, to which a store is attached while it is queried.

DuckDB takes 20 to 30 ms of a core to start, most of it to list its functions; to attach a file takes one. A run makes
some fifty queries, most of them tiny. Whoever is given a connection for longer, and may change DuckDB's settings on it,
starts a DuckDB of its own (`distill.store.opening`), as the writer does.

A process that closes a file loses all its locks on it, through whichever handle it has them (fcntl(2)). So it has one
handle on a store at a time: threads that query share an attachment; others wait for its end (`attached`); and a query
made while others have the file open (`own`) goes through their DuckDB, which Python's module shares by path.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

CONFIG: dict[str, str | bool | int | float | list[str]] = {"autoinstall_known_extensions": "false"}

Release = Callable[[bool], None]
"""Ends a query; told whether DuckDB itself failed, and must not be used again."""

guard = threading.Lock()
"""Held while connecting and while the state below changes: DuckDB would give another thread a half-opened database."""
_duckdb: duckdb.DuckDBPyConnection | None = None
_attachments: dict[Path, Attachment] = {}
_own: Counter[Path] = Counter()
_lost: list[object] = []
"""What a fork has copied of a DuckDB, without its threads: neither used nor closed again."""


@dataclass
class Attachment:
    """A store that is attached, under a name that no other has."""

    name: str
    connection: duckdb.DuckDBPyConnection
    """It is attached and detached through this one; each query has its own."""
    spill: Path
    """Where DuckDB puts what does not fit into memory."""
    users: int = 0
    broken: bool = False


@contextmanager
def own(path: Path) -> Iterator[None]:
    """While a connection to the database at ``path`` is opened, used and closed that has a DuckDB of its own."""
    with guard:
        _own[path.absolute()] += 1
    try:
        yield
    finally:
        with guard:
            _own[path.absolute()] -= 1


def attached(path: Path) -> bool:
    """Whether a query has the database at ``path`` attached. To be asked with `guard` held."""
    return path.absolute() in _attachments


def query(path: Path, start: Callable[[], duckdb.DuckDBPyConnection]) -> tuple[duckdb.DuckDBPyConnection, Release]:
    """A connection for queries of the database at ``path``, and what ends it. ``start`` connects to a DuckDB for that
    file alone. To be called with `guard` held. Raises DuckDB's errors."""
    path = path.absolute()
    if _own[path]:
        connection = start()
        _own[path] += 1
        return connection, lambda broken: _leave(path, connection)
    attachment = _attachments.get(path) or _attach(path)
    attachment.users += 1
    try:
        connection = attachment.connection.cursor()
        connection.execute(f"USE {attachment.name}")
    except BaseException:
        _one_less(path, broken=True)
        raise
    return connection, lambda broken: _release(path, connection, broken)


def _leave(path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    with guard:
        connection.close()
        _own[path] -= 1


def _release(path: Path, connection: duckdb.DuckDBPyConnection, broken: bool) -> None:
    with guard:
        connection.close()
        _one_less(path, broken)


def _attach(path: Path) -> Attachment:
    spill = path.with_name(path.name + ".tmp")
    connection = (_duckdb if _attachments and _duckdb else _started(spill)).cursor()
    taken = {attachment.name for attachment in _attachments.values()}
    names = (f'"{path.stem}"', *(f'"{path.stem} {number}"' for number in range(2, len(taken) + 2)))
    name = next(name for name in names if name not in taken)
    try:
        connection.execute("ATTACH '{}' AS {} (READ_ONLY)".format(str(path).replace("'", "''"), name))
    except BaseException:
        connection.close()
        raise
    _attachments[path] = Attachment(name, connection, spill)
    return _attachments[path]


def _started(spill: Path) -> duckdb.DuckDBPyConnection:
    """The DuckDB of this process, which spills there; started unless it runs, and anew if it cannot change the place,
    since it has used another."""
    global _duckdb
    import duckdb

    for _ in range(2):
        if _duckdb is None:
            _duckdb = duckdb.connect(":memory:", config=CONFIG)
        with suppress(duckdb.Error):
            _duckdb.execute("SET temp_directory = ?", [str(spill)])
            break
        _stop()
    assert _duckdb is not None
    return _duckdb


def _one_less(path: Path, broken: bool) -> None:
    """A user less. With the last, the store is detached, and DuckDB stopped if it has failed, or has used the disk,
    which it clears away only then."""
    import duckdb

    attachment = _attachments[path]
    attachment.users -= 1
    attachment.broken |= broken
    if attachment.users:
        return
    del _attachments[path]
    try:
        attachment.connection.execute(f"DETACH {attachment.name}")
    except duckdb.Error:
        attachment.broken = True
    attachment.connection.close()
    if attachment.broken or attachment.spill.exists():
        _stop()


def _stop() -> None:
    """Let go of DuckDB; it ends with the last attachment."""
    global _duckdb
    if _duckdb is not None:
        _duckdb.close()
        _duckdb = None


def _before_fork() -> None:
    """A fork copies no threads, and DuckDB cannot do without its own."""
    guard.acquire()
    if not _attachments:
        with suppress(Exception):
            _stop()


def _in_child() -> None:
    global _duckdb
    _lost.extend([_duckdb, *_attachments.values()])
    _duckdb = None
    _attachments.clear()
    guard.release()


os.register_at_fork(before=_before_fork, after_in_parent=guard.release, after_in_child=_in_child)
