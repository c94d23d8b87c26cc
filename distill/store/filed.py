"""Traces in files: their rows are stored in the journal only, and the database has a view over them.

Traces make up nearly all of a store. A second copy in the database would double its size and halve the speed of
ingesting, so the database holds only their keys, the names of their files (`ingested`) and the view `traces`. A large
shard becomes a journal file by a rename; small shards are merged, and so are small files once there are many. Every
change of the list of files is one transaction. A file that is not in the list (after a crash, or because an older
database was restored) is ingested like a shard.

Called by `distill.store.store`, which holds the database open for writing, so nobody reads meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.store import schema, shards
from distill.store.schema import count_rows

if TYPE_CHECKING:
    import duckdb

TABLE = "traces"
COLUMNS = schema.COLUMNS[TABLE]
LARGE = 5_000
"""Files with at least this many rows stay as they are; smaller ones are merged."""
MANY = 32
"""Once the journal has this many small files, they are merged into one."""
GROUP = 100_000
"""Rows whose keys are compared at a time, which limits memory."""

Whole = Callable[[list[Path]], list[Path]]
"""Returns the files that can be read; sets the others aside, with a note."""


def behind(connection: duckdb.DuckDBPyConnection, directory: Path) -> bool:
    """Whether the database and the journal's files disagree. Reads no trace."""
    listed = files(connection)
    if set(listed) != {path.name for path in shards.pending(directory, TABLE)}:
        return True
    if _row_counts(connection, [directory / TABLE / name for name in listed]) != list(listed.values()):
        return True
    return count_rows(connection, "trace_keys") != sum(listed.values())


def _row_counts(connection: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> list[int]:
    """The number of rows of each file, from its footer; empty if one cannot be read. By DuckDB, as it is loaded."""
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
    """Take shards into the journal, and files that its list lacks; returns the number of rows added."""
    before = count_rows(connection, "trace_keys")
    _forget_lost(connection, directory)
    listed = files(connection)
    unlisted = [path for path in shards.pending(directory, TABLE) if path.name not in listed]
    for group in shards.grouped(whole([*unlisted, *waiting]), GROUP):
        _take_group(connection, directory, group)
    _merge_small(connection, directory)
    return count_rows(connection, "trace_keys") - before


def files(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """The files that the view reads, with the number of rows of each."""
    sql = "SELECT journal, added FROM ingested WHERE table_name = ? ORDER BY journal"
    return dict(connection.execute(sql, [TABLE]).fetchall())


def _take_group(connection: duckdb.DuckDBPyConnection, directory: Path, group: Sequence[Path]) -> None:
    """Bring the rows with new keys into the journal, then list their files, then delete what is no longer needed."""
    place = directory / TABLE
    repeats = _repeats(connection, group)
    as_they_are = [path for path in group if path not in repeats and shards.count(path) >= LARGE]
    others = [path for path in group if path not in as_they_are]
    made: dict[Path, int] = {}
    for path in as_they_are:
        final = shards.move(path, place / path.name)
        made[final] = shards.count(final)
    merged = place / shards.fresh_name()
    if rows := shards.merge(merged, TABLE, shards.rows(others, repeats)):
        made[merged] = rows
    with schema.transaction(connection):
        _add_files(connection, made, known=False)
    for path in others:
        path.unlink()


def _repeats(connection: duckdb.DuckDBPyConnection, group: Sequence[Path]) -> dict[Path, set[int]]:
    """By file, the numbers of rows whose key exists already or is that of an earlier row (file names sort by time)."""
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


def _add_files(connection: duckdb.DuckDBPyConnection, made: Mapping[Path, int], known: bool) -> None:
    """Add files to the list, and their keys unless they are ``known``."""
    if not made:
        return
    if not known:
        _add_keys(connection, made)
    rows = [(TABLE, path.name, count) for path, count in made.items()]
    connection.executemany("INSERT INTO ingested VALUES (?, ?, ?)", rows)
    _recreate_view(connection)


def _remove_files(connection: duckdb.DuckDBPyConnection, names: Iterable[str]) -> None:
    connection.execute("DELETE FROM ingested WHERE table_name = ? AND journal IN ?", [TABLE, list(names)])


def _forget_lost(connection: duckdb.DuckDBPyConnection, directory: Path) -> None:
    """Take files that are missing or truncated off the list: this database has lost their rows. (An older database
    that was restored finds them in merged files, which it does not list.)"""
    listed = files(connection)
    lost = [name for name, rows in listed.items() if shards.count(directory / TABLE / name) != rows]
    keys = count_rows(connection, "trace_keys")
    if not lost and keys == sum(listed.values()):
        return
    with schema.transaction(connection):
        _remove_files(connection, lost)
        _recreate_view(connection)
        connection.execute("DELETE FROM trace_keys")
        _add_keys(connection, [directory / TABLE / name for name in files(connection)])


def _add_keys(connection: duckdb.DuckDBPyConnection, paths: Iterable[Path]) -> None:
    if names := [str(path) for path in paths]:
        connection.execute("INSERT INTO trace_keys SELECT trace_key FROM read_parquet(?)", [names])


def _merge_small(connection: duckdb.DuckDBPyConnection, directory: Path) -> None:
    place = directory / TABLE
    small = {name: rows for name, rows in files(connection).items() if rows < LARGE}
    if len(small) < MANY:
        return
    final = place / shards.fresh_name()
    rows = shards.merge(final, TABLE, shards.rows(place / name for name in small))
    with schema.transaction(connection):
        _remove_files(connection, small)
        _add_files(connection, {final: rows}, known=True)
    for name in small:
        (place / name).unlink()


def _recreate_view(connection: duckdb.DuckDBPyConnection) -> None:
    """Recreate the view. It finds its files through the variable `workspace`, which `Store` sets, so that a
    workspace can be moved."""
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
