"""The store's schema and its version: numbered SQL files, each applied in its own transaction.

``migrations/0001_initial.sql`` makes version 1, and each later file the next version from the one before it. They are
the only definition of the schema; the Arrow schemas of the shards and the documentation are derived from a database
that they have made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.fingerprint import content_hash

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

MIGRATIONS = Path(__file__).with_name("migrations")

KEYS: dict[str, tuple[str, ...]] = {
    "problems": ("problem_key",),
    "traces": ("trace_key",),
    "verdicts": ("verdict_key",),
    "members": ("collection", "position"),
    "rejections": ("run", "position"),
    "rollouts": ("trace_key",),
    "updates": ("run", "optimizer_step", "trace_key"),
    "metrics": ("run", "step", "name"),
    "alarms": ("run", "name"),
    "trace_losses": ("run", "trace_key", "epoch"),
    "calls": ("call_id",),
    "curation": ("run", "position"),
    "exposure": ("run", "label", "problem_key"),
    "step_labels": ("run", "source", "example", "step"),
    "searches": ("run", "strategy", "budget", "start", "problem_key"),
    "step_scores": ("score_key",),
    "models": ("model", "name"),
}
"""The columns that identify a row, by table. A row whose key exists already is not ingested again."""

COLUMNS = {"traces": "trace_columns"}
"""For tables that are really views: the table that defines their columns."""


class Older(InputError):
    """The store has an older version of the schema; the next writer brings it up to date."""


def versions() -> dict[int, str]:
    """The SQL of each version of the schema, from 1."""
    return {int(path.stem[:4]): path.read_text() for path in sorted(MIGRATIONS.glob("*.sql"))}


def version(connection: duckdb.DuckDBPyConnection, path: str) -> int:
    """The version of a store's schema, 0 if it is empty. Raises `InputError` if the store was made by another program,
    a newer distill, or a development version of it, whose SQL was different."""
    sql = "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database()"
    tables = {row[0] for row in connection.execute(sql).fetchall()}
    known, found = versions(), {}
    if "schema_versions" in tables:
        found = dict(connection.execute("SELECT version, checksum FROM schema_versions").fetchall())
    elif tables and not {"migrations", "ingested"} <= tables:
        raise InputError(f"{path}: another program's database (it holds {min(tables)}); choose another workspace")
    newest = max(found, default=0)
    if newest > max(known):
        what = f"its schema is version {newest}, and this distill knows {max(known)}"
        raise InputError(f"{path}: written by a newer distill ({what}); upgrade distill to use it")
    if (tables and not found) or any(content_hash(known[number]) != was for number, was in found.items()):
        raise InputError(
            f"{path}: made by a development version of distill, which this one cannot use; move the workspace away or "
            "remove it, then run the same command again"
        )
    return newest


def check(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    """Raise `Older` or another `InputError` unless the store has the newest version of the schema."""
    if version(connection, path) < max(versions()):
        raise Older(f"{path}: made by an older distill; `distill run` brings it up to date")


def migrate(connection: duckdb.DuckDBPyConnection, path: str = "store") -> None:
    """Bring a store, or an empty database, up to date. DDL is checkpointed at once, since replaying it from a
    write-ahead log is a weak spot of DuckDB (duckdb/duckdb#19712)."""
    old = version(connection, path)
    wanted = {number: sql for number, sql in versions().items() if number > old}
    for number, sql in wanted.items():
        with transaction(connection):
            connection.execute(sql)
            connection.execute("INSERT INTO schema_versions VALUES (?, ?, now())", [number, content_hash(sql)])
    if wanted:
        connection.execute("CHECKPOINT")


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """A transaction that is rolled back if it fails. After some errors, such as a full disk, DuckDB has already done
    so; then the error of the second rollback must not hide the first error."""
    import duckdb

    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        raise


def count_rows(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    ((found,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return int(found)


@cache
def arrow_schemas() -> dict[str, pa.Schema]:
    """The Arrow schema of every table, as the migrations make them."""
    import duckdb

    with duckdb.connect(":memory:") as connection:
        migrate(connection)
        return {t: connection.sql(f"SELECT * FROM {t} LIMIT 0").to_arrow_table().schema for t in KEYS}


def _columns_of(connection: duckdb.DuckDBPyConnection, view: str) -> str:
    found = connection.execute(f"DESCRIBE {view}").fetchall()
    return "Columns: " + ", ".join(f"`{name}` {kind.lower()}" for name, kind, *_ in found) + "."


def documentation() -> str:
    """The schema as Markdown, for ``docs/store.md``."""
    import duckdb

    lines: list[str] = []
    with duckdb.connect(":memory:") as connection:
        migrate(connection)
        for table in KEYS:
            about = connection.execute(
                "SELECT comment FROM duckdb_tables() WHERE table_name = $name UNION ALL "
                "SELECT comment FROM duckdb_views() WHERE view_name = $name",
                {"name": table},
            ).fetchone()
            lines += [
                f"### `{table}`",
                "",
                str(about[0]) if about else "",
                "",
                "| column | type | what |",
                "|---|---|---|",
            ]
            columns = connection.execute(
                "SELECT column_name, data_type, coalesce(comment, '') FROM duckdb_columns() "
                "WHERE table_name = ? ORDER BY column_index",
                [COLUMNS.get(table, table)],
            ).fetchall()
            lines += [f"| `{name}` | {kind} | {what} |" for name, kind, what in columns] + [""]
        views = "SELECT view_name, comment FROM duckdb_views() WHERE NOT internal ORDER BY view_name"
        for view, what in connection.execute(views).fetchall():
            if view not in KEYS:
                lines += [f"### `{view}` (a view)", "", str(what), "", _columns_of(connection, view), ""]
    return "\n".join(lines)
