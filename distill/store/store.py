"""The trace store: DuckDB over durable shards, one writer, readers at any time.

`append` makes rows durable; `ingest` brings them into DuckDB. The file is open for writing only during
an ingest, so that `distill status`, `distill traces` and a notebook can read while a run is in progress
(in DuckDB, one writing process excludes all others, including readers; both sides retry). After each
ingest the write-ahead log is empty, so if it is ever found damaged, the shards hold what it held. Who may
write is decided by the run's lock on the workspace, not here.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.store import attaching, filed, opening, schema, shards
from distill.store.opening import Damaged, NoMemory, first_line
from pipeline.errors import Busy, InputError, PipelineError
from pipeline.files import TEMPORARY, disk_errors, disk_is_full, make_directory
from pipeline.lock import workspace_lock
from pipeline.scratch import scratch

if TYPE_CHECKING:
    import duckdb

Opener = Callable[[Path, float], AbstractContextManager["duckdb.DuckDBPyConnection"]]
READER_PATIENCE = 20.0
WRITER_PATIENCE = 120.0
"""Seconds to wait for a lock held by another process before reporting who holds it."""
_checked: set[tuple[Path, int]] = set()
"""The stores (path, time of the last write) whose version this process has checked: a run that finds everything
cached opens the store a dozen times."""


class Store:
    """The store of one workspace: ``store.duckdb``, ``shards/`` not yet ingested, ``journal/``."""

    def __init__(self, workspace: Path, note: Callable[[str], None] = lambda text: None) -> None:
        self.path = workspace / "store.duckdb"
        self.shards = workspace / "shards"
        self.journal = workspace / "journal"
        self._note = note
        self._written: dict[Path, tuple[int, int]] = {}
        """Shards written by this process, with size and time; while these are unchanged, a shard is intact."""

    # -- writing ------------------------------------------------------------------------------

    def append(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Make rows durable. They are seen by queries after the next `ingest`."""
        if rows:
            shard = shards.write(self.shards, table, rows)
            self._written[shard] = _stamp(shard)

    def ingest(self, patience: float = WRITER_PATIENCE) -> dict[str, int]:
        """Bring all shards into DuckDB; returns the number of rows added, by table. Idempotent; may be killed anywhere.

        Raises `Busy` if another process has the store open for longer than ``patience`` seconds.
        """
        if self.path.exists() and not any(self._pending().values()):
            return {}
        with self._writing(patience) as connection:
            added = {t: self._take(connection, t, paths) for t, paths in self._pending().items() if paths}
            connection.execute("CHECKPOINT")
        return added

    def _pending(self) -> dict[str, list[Path]]:
        return {table: shards.pending(self.shards, table) for table in schema.KEYS}

    def _take(self, connection: duckdb.DuckDBPyConnection, table: str, paths: list[Path]) -> int:
        """Ingest a table's shards and merge them into the journal; returns the number of rows added."""
        if table == filed.TABLE:
            return self._take_traces(connection, paths)
        added = 0
        for group in shards.grouped(self._readable(paths), filed.GROUP):
            name = shards.fresh_name()
            added += _add(connection, table, group, [name])
            shards.merge(self.journal / table / name, table, shards.rows(group))
            for path in group:
                path.unlink()
        return added

    def _take_traces(self, connection: duckdb.DuckDBPyConnection, paths: list[Path]) -> int:
        added = filed.take(connection, self.journal, paths, self._readable)
        if added < 0:
            self._note(f"{self.journal}: {-added} traces are lost, as their files are missing or truncated")
        return max(added, 0)

    def ingest_if_free(self) -> None:
        """Ingest unless the store is in use. For the middle of a stage, which must not wait for a long read; the
        shards can wait."""
        with suppress(Busy):
            self.ingest(patience=0.0)

    def refresh(self) -> None:
        """For commands that read: ingest what a killed run had made durable, and remake a database that was deleted. If
        that is not possible (the store is in use, read-only or damaged), the reading reports it, or it does no harm."""
        if self._deleted() or any(self._pending().values()):
            with suppress(PipelineError, OSError):
                if self.path.exists():
                    with self._read(opening.querying):  # a damaged store is for the next run to set aside
                        pass
                    self.ingest(patience=0.0)
                else:  # two processes must not make it at the same time
                    with workspace_lock(self.path.parent, wait=False, stopping=lambda: True):
                        self.ingest(patience=0.0)

    def refuse_foreign(self) -> None:
        """Raise `InputError` if a run would refuse the store: another program's, or of a version that this distill does
        not know. What the next run mends, or waits for, is not reported."""
        if self.path.exists():
            with suppress(Damaged, schema.Older, NoMemory, Busy), self._read(opening.querying):
                pass

    def _deleted(self) -> bool:
        return not self.path.exists() and any(shards.pending(self.journal, table) for table in schema.KEYS)

    def mend(self) -> None:
        """Remake a store that cannot be opened, restore lost rows from the journal (after an older copy was put
        back, or a torn tail), and bring the store of an older distill up to date. Called by whoever holds the
        workspace's lock, before anything reads."""
        for directory in (self.shards, self.journal):
            make_directory(directory)
        if self._deleted():
            self.ingest()
            self._note(f"{self.path}: was missing; remade from the journal")
        if not self.path.exists():
            return
        try:
            with self._read(opening.querying) as connection:
                behind = self._behind(connection)
        except (Damaged, schema.Older):
            behind = list(schema.KEYS)
        if behind:
            with self._writing() as connection:
                brought = sum(self._replay(connection, table) for table in behind)
                connection.execute("CHECKPOINT")
            if brought:
                self._note(f"{self.path}: lacked {brought} rows; restored from the journal")

    def _behind(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        """The tables that differ from the journal."""
        found = connection.execute("SELECT table_name, list(journal), sum(added) FROM ingested GROUP BY ALL")
        known = {table: (set(names), rows) for table, names, rows in found.fetchall()}
        behind = [filed.TABLE] if filed.behind(connection, self.journal) else []
        for table in schema.KEYS:
            if table == filed.TABLE:
                continue
            names, rows = known.get(table, (set(), 0))
            there = {path.name for path in shards.pending(self.journal, table)}
            if schema.count_rows(connection, table) != rows or not there <= names:
                behind.append(table)
        return behind

    def _replay(self, connection: duckdb.DuckDBPyConnection, table: str) -> int:
        """Add the rows of its journal that a table lacks; afterwards `ingested` is correct."""
        if table == filed.TABLE:
            return self._take_traces(connection, [])
        connection.execute("DELETE FROM ingested WHERE table_name = ?", [table])
        there = schema.count_rows(connection, table)
        connection.execute("INSERT INTO ingested VALUES (?, '', ?)", [table, there])
        groups = shards.grouped(self._readable(shards.pending(self.journal, table)), filed.GROUP)
        return sum(_add(connection, table, group, [path.name for path in group]) for group in groups)

    def _readable(self, paths: list[Path]) -> list[Path]:
        good = []
        for path in paths:
            written = self._written.pop(path, None)
            if (written and written == _stamp(path)) or shards.readable(path):
                good.append(path)
            else:
                os.replace(path, path.with_suffix(".damaged"))
                self._note(f"{path}: damaged; set aside as .damaged, its rows will be made again")
        return good

    @contextmanager
    def _writing(self, patience: float = WRITER_PATIENCE) -> Iterator[duckdb.DuckDBPyConnection]:
        make_directory(self.path.parent)
        with (
            opening.alone(self.path, patience),
            attaching.own(self.path),
            closing(self._open_or_rebuild(patience)) as connection,
        ):
            opening.tune(connection)
            schema.migrate(connection, str(self.path))
            yield connection

    def _open_or_rebuild(self, patience: float) -> duckdb.DuckDBPyConnection:
        """Open for writing. A damaged log or database is set aside with a note; the database is remade from the
        journal."""
        import duckdb

        wal = self.path.with_name(self.path.name + ".wal")
        if not self.path.exists():
            self._rebuild()
        try:
            return opening.connect(self.path, patience)
        except duckdb.Error as error:
            if wal.exists():
                os.replace(wal, wal.with_name(f"{wal.name}.damaged-{int(time.time())}"))
                self._note(
                    f"{wal}: damaged ({first_line(error)}); set aside; nothing is lost: the shards have its rows"
                )
                return self._open_or_rebuild(patience)
            aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
            os.replace(self.path, aside)
            self._note(
                f"{self.path}: damaged ({first_line(error)}); set aside as {aside.name}, remade from the journal"
            )
        self._rebuild()
        return opening.connect(self.path, patience)

    def _rebuild(self) -> None:
        """Build the database from the journal. It gets its name once it is complete: a rebuild that is killed
        half-way must not be taken for the store."""
        import duckdb

        temporary = self.path.with_name(TEMPORARY + self.path.name)
        for leftover in (temporary, temporary.with_name(temporary.name + ".wal")):
            leftover.unlink(missing_ok=True)
        try:
            with duckdb.connect(str(temporary)) as connection:
                opening.locate(connection, self.path.parent)
                opening.tune(connection)
                schema.migrate(connection, str(self.path))
                for table in schema.KEYS:
                    self._replay(connection, table)
                connection.execute("CHECKPOINT")
        except duckdb.Error as error:
            if disk_is_full(error):
                what = "no space left on the disk, or in your quota; free some and run the same command again"
                raise InputError(f"{self.path}: {what}") from None
            if isinstance(error, duckdb.BinderException):  # it has a column that the table lacks
                what = f"written by another version of distill ({first_line(error)})"
                raise InputError(f"{self.journal}: {what}; use that one, or move the workspace away") from None
            wrong = InputError if opening.DISK.search(str(error)) else PipelineError
            raise wrong(f"{self.path}: cannot be made: {first_line(error)}") from None
        os.replace(temporary, self.path)

    # -- reading ------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection, with a DuckDB of its own, whose settings may be changed; waits a moment for a writer
        to finish its commit."""
        with attaching.own(self.path), self._read(self._connected) as connection:
            yield connection

    def _connected(self, path: Path, patience: float) -> closing[duckdb.DuckDBPyConnection]:
        return closing(opening.connect(path, patience, read_only=True))

    @contextmanager
    def _read(self, opened: Opener) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection that ``opened`` makes, to a store of this distill's version; errors as users should see them."""
        import duckdb

        if not self.path.exists():
            raise InputError(f"{self.path}: there is no trace store yet; `distill run` makes one")
        connection = None
        try:
            with opened(self.path, READER_PATIENCE) as connection:
                if (stamp := (self.path, self.path.stat().st_mtime_ns)) not in _checked:
                    schema.check(connection, str(self.path))
                    _checked.add(stamp)
                yield connection
        except duckdb.Error as error:
            if connection is None:
                what = f"cannot be read: {first_line(error)}; the next `distill run` remakes it from the journal"
                raise Damaged(f"{self.path}: {what}") from None
            if isinstance(error, duckdb.OutOfMemoryException) or opening.MEMORY.search(str(error)):
                raise NoMemory(self.path, error) from None
            if not opening.DAMAGE.search(str(error)):
                raise
            raise Damaged(f"{self.path}: damaged: {first_line(error)}; {self._remedy(error)}") from None

    def _remedy(self, error: Exception) -> str:
        if f"/{self.journal.name}/" in str(error):
            return "the next `distill run` remakes it, or makes its rows again"
        return "move it away: the next `distill run` remakes it from the journal"

    @contextmanager
    def snapshot(self) -> Iterator[Store]:
        """The store as it is now, in a directory of its own, so that a long read keeps nobody from writing. The files
        of the journal are linked, not copied, since they never change. If the workspace is read-only (a colleague's, a
        read-only disk), the snapshot is in the system's directory for temporary files."""
        near = os.access(self.path.parent, os.W_OK)
        with scratch(self.path.parent if near else Path(tempfile.gettempdir()), "snapshot") as directory:
            with self.reading() as connection, disk_errors(directory):
                place = make_directory(directory / self.journal.name / filed.TABLE)
                for name, rows in filed.files(connection).items():
                    _link(self.journal / filed.TABLE / name, place / name, lasting=rows >= filed.LARGE)
                for name in (self.path.name, f"{self.path.name}.wal"):
                    if (file := self.path.with_name(name)).exists():
                        shutil.copyfile(file, directory / name)
            yield Store(directory, self._note)

    def rows(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """Run one query and return its rows as dicts."""
        with self._read(opening.querying) as connection:
            return _dicts(connection.execute(sql, parameters))

    def among(self, column: str, keys: Iterable[str], sql: str) -> list[dict[str, Any]]:
        """As `rows`, for a query of a table `wanted`, whose only ``column`` holds ``keys``. No rows without a store."""
        given = list(keys)
        if not given or not self.path.exists():
            return []
        with self._read(opening.querying) as connection:
            list_wanted(connection, column, given)
            return _dicts(connection.execute(sql))

    def present(self, table: str, keys: Iterable[str]) -> set[str]:
        """Which of ``keys`` the table holds. Call `ingest` first to include rows in shards."""
        column = schema.KEYS[table][0]
        found = self.among(column, keys, f"SELECT {column} FROM wanted SEMI JOIN {table} USING ({column})")
        return {row[column] for row in found}


def list_wanted(connection: duckdb.DuckDBPyConnection, column: str, keys: Sequence[str]) -> None:
    """For the queries of this connection alone: make a table `wanted`, whose only ``column`` holds ``keys``. (As quick
    as from Arrow, which would import pandas: half a second.)"""
    connection.execute(f"CREATE TEMP TABLE wanted AS SELECT unnest(?::VARCHAR[]) AS {column}", [keys])


def _add(connection: duckdb.DuckDBPyConnection, table: str, paths: Sequence[Path], names: Sequence[str]) -> int:
    """Add the rows of files that are, or will be, in the journal as ``names``; returns the number of rows added."""
    with schema.transaction(connection):
        added = _insert(connection, table, paths)
        counts = [added, *(0 for _ in names[1:])]
        connection.executemany(
            "INSERT INTO ingested VALUES (?, ?, ?)", [(table, name, n) for name, n in zip(names, counts, strict=True)]
        )
    return added


def _insert(connection: duckdb.DuckDBPyConnection, table: str, paths: Sequence[Path]) -> int:
    """Insert the shards' rows with new keys; of rows with equal keys, the one written first."""
    keys = ", ".join(schema.KEYS[table])
    row = connection.execute(
        f"INSERT INTO {table} BY NAME SELECT * EXCLUDE (filename, file_row_number) "
        f"FROM read_parquet($paths, filename = true, file_row_number = true, union_by_name = true) "
        f"ANTI JOIN {table} USING ({keys}) "
        f"QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY filename, file_row_number) = 1",
        {"paths": [str(path) for path in paths]},
    ).fetchone()
    return int(row[0]) if row else 0


def _dicts(result: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _link(path: Path, other: Path, lasting: bool) -> None:
    """Hard-link a file. If that is not possible (another disk, another user's file), a ``lasting`` file is symlinked,
    and one that may be merged away is copied."""
    try:
        os.link(path, other)
    except OSError:
        other.symlink_to(path.absolute()) if lasting else shutil.copyfile(path, other)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
