"""Traces in files: rows that lie in the journal alone, with a view in the database over them.

Traces are nearly all of a store. A second copy of them, in the database, would double its size and halve
the speed of ingesting, so the database holds their keys, the names of their files (`ingested`) and the
view `traces`. A large shard becomes a file of the journal by being renamed; small ones are merged, and so
are small files once there are many. Every change of the list is one transaction; a file that the list does
not name (a crash came between, an older database was put back) is taken in like a shard.

Called by `distill.store.store`, which holds the database open for writing, so that nobody reads meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.store import schema, shards

if TYPE_CHECKING:
    import duckdb

TABLE = "traces"
COLUMNS = schema.COLUMNS[TABLE]
LARGE = 5_000
"""A file of so many rows is left as it is; smaller ones are merged."""
MANY = 32
"""So many small files of the journal become one."""
GROUP = 100_000
"""Rows whose keys are compared at a time: what bounds the memory."""

Whole = Callable[[list[Path]], list[Path]]
"""Of files those that can be read; the others are set aside and said."""


def behind(connection: duckdb.DuckDBPyConnection, directory: Path) -> bool:
    """Whether the database and the journal's files do not say the same. Reads no trace."""
    listed = files(connection)
    if set(listed) != {path.name for path in shards.pending(directory, TABLE)}:
        return True
    if _counted(connection, [directory / TABLE / name for name in listed]) != list(listed.values()):
        return True
    return _number(connection, "trace_keys") != sum(listed.values()) or _number(connection, COLUMNS) > 0


def _counted(connection: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> list[int]:
    """Their rows by their footers; empty where one cannot be read. By DuckDB, which is loaded already."""
    import duckdb

    if not paths:
        return []
    sql = "SELECT file_name, num_rows FROM parquet_file_metadata(?)"
    try:
        found = dict(connection.execute(sql, [[str(path) for path in paths]]).fetchall())
    except duckdb.Error:
        return []
    return [int(found[str(path)]) for path in paths]


def take(connection: duckdb.DuckDBPyConnection, directory: Path, waiting: Sequence[Path], whole: Whole) -> int:
    """Take shards into the journal, and whatever the list of its files lacks; returns the rows added."""
    before = _number(connection, "trace_keys")
    _forget_lost(connection, directory)
    listed = files(connection)
    unlisted = [path for path in shards.pending(directory, TABLE) if path.name not in listed]
    for group in shards.grouped(whole([*unlisted, *waiting]), GROUP):
        _take_group(connection, directory, group)
    _unload(connection, directory)
    _merge_small(connection, directory)
    return _number(connection, "trace_keys") - before


def files(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """The files that the view reads, and the rows of each."""
    sql = "SELECT journal, added FROM ingested WHERE table_name = ? AND journal <> '' ORDER BY journal"
    return dict(connection.execute(sql, [TABLE]).fetchall())


def _take_group(connection: duckdb.DuckDBPyConnection, directory: Path, group: Sequence[Path]) -> None:
    """Bring the rows with new keys into the journal, then list them, then drop what is not needed any more."""
    place = directory / TABLE
    repeats = _repeats(connection, group)
    as_they_are = [path for path in group if path not in repeats and shards.count(path) >= LARGE]
    others = [path for path in group if path not in as_they_are]
    made: dict[Path, int] = {}
    for path in as_they_are:
        final = shards.move(path, place / path.name)
        made[final] = shards.count(final)
    merged = place / shards.fresh_name()
    if rows := shards.merge(merged, TABLE, shards.rows(others, TABLE, repeats)):
        made[merged] = rows
    with schema.transaction(connection):
        _list(connection, made, known=False)
    for path in others:
        path.unlink()


def _repeats(connection: duckdb.DuckDBPyConnection, group: Sequence[Path]) -> dict[Path, set[int]]:
    """The numbers of rows whose key is there already, or stands in an earlier row (names sort by time)."""
    found: dict[Path, set[int]] = {}
    rows = connection.execute(
        "WITH new AS (SELECT filename, file_row_number AS row, trace_key "
        "FROM read_parquet($paths, filename = true, file_row_number = true)) "
        "SELECT filename, row FROM new SEMI JOIN trace_keys USING (trace_key) UNION "
        "SELECT filename, row FROM new QUALIFY row_number() OVER "
        "(PARTITION BY trace_key ORDER BY parse_filename(filename), row) > 1",
        {"paths": [str(path) for path in group]},
    ).fetchall()
    for name, row in rows:
        found.setdefault(Path(name), set()).add(row)
    return found


def _list(connection: duckdb.DuckDBPyConnection, made: Mapping[Path, int], known: bool) -> None:
    """Name new files; their keys too, unless these are known."""
    if not made:
        return
    if not known:
        _know(connection, made)
    rows = [(TABLE, path.name, count) for path, count in made.items()]
    connection.executemany("INSERT INTO ingested VALUES (?, ?, ?)", rows)
    _view(connection)


def _unlist(connection: duckdb.DuckDBPyConnection, names: Iterable[str]) -> None:
    connection.execute("DELETE FROM ingested WHERE table_name = ? AND journal IN ?", [TABLE, list(names)])


def _forget_lost(connection: duckdb.DuckDBPyConnection, directory: Path) -> None:
    """Files that somebody has taken away, or that are cut short: the rows are lost to this database (an older
    one that was put back finds them in merged files, which it does not list)."""
    listed = files(connection)
    lost = [name for name, rows in listed.items() if shards.count(directory / TABLE / name) != rows]
    keys = _number(connection, "trace_keys")
    if not lost and keys == sum(listed.values()):
        return
    with schema.transaction(connection):
        connection.execute("DELETE FROM ingested WHERE table_name = ? AND journal = ''", [TABLE])
        _unlist(connection, lost)
        _view(connection)
        connection.execute("DELETE FROM trace_keys")
        _know(connection, [directory / TABLE / name for name in files(connection)])


def _know(connection: duckdb.DuckDBPyConnection, paths: Iterable[Path]) -> None:
    if names := [str(path) for path in paths]:
        connection.execute("INSERT INTO trace_keys SELECT trace_key FROM read_parquet(?)", [names])


def _unload(connection: duckdb.DuckDBPyConnection, directory: Path) -> None:
    """Rows that an older distill kept in the database itself: what the journal lacks of them becomes a file."""
    if not _number(connection, COLUMNS):
        return
    sql = f"SELECT * FROM {COLUMNS} ANTI JOIN trace_keys USING (trace_key)"
    final = directory / TABLE / shards.fresh_name()
    rows = shards.merge(final, TABLE, shards.batches(connection, sql))
    with schema.transaction(connection):
        connection.execute(f"DELETE FROM {COLUMNS}")
        _list(connection, {final: rows} if rows else {}, known=False)


def _merge_small(connection: duckdb.DuckDBPyConnection, directory: Path) -> None:
    place = directory / TABLE
    small = {name: rows for name, rows in files(connection).items() if rows < LARGE}
    if len(small) < MANY:
        return
    final = place / shards.fresh_name()
    rows = shards.merge(final, TABLE, shards.rows([place / name for name in small], TABLE, {}))
    with schema.transaction(connection):
        _unlist(connection, small)
        _list(connection, {final: rows}, known=True)
    for name in small:
        (place / name).unlink()


def _view(connection: duckdb.DuckDBPyConnection) -> None:
    """Make the view anew. Its files are found through the variable `workspace`, which `Store` sets: a
    workspace may be moved."""
    about = connection.execute("SELECT comment FROM duckdb_views() WHERE view_name = ?", [TABLE]).fetchone()
    sql = f"CREATE OR REPLACE VIEW {TABLE} AS SELECT * FROM {COLUMNS}"
    if names := files(connection):
        listed = ", ".join(f"'{name}'" for name in names)
        directory = f"coalesce(getvariable('workspace') || '/', '') || 'journal/{TABLE}/'"
        sql += (
            f" UNION ALL BY NAME SELECT * FROM read_parquet("
            f"list_transform([{listed}], lambda name: {directory} || name), union_by_name = true)"
        )
    connection.execute(sql)
    if about and about[0]:
        text = str(about[0]).replace("'", "''")
        connection.execute(f"COMMENT ON VIEW {TABLE} IS '{text}'")


def _number(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    ((found,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(found)
