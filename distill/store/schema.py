"""The store's schema: ordered, named migrations, each applied in its own transaction.

A new store gets all of them in one, which takes half the time. The SQL files in ``migrations/`` are the only
definition of the schema; the Arrow schemas of the shards and the documentation are derived from a database that
they have made.
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


def names() -> list[str]:
    return sorted(path.stem for path in MIGRATIONS.glob("*.sql"))


def checksum(name: str) -> str:
    return content_hash((MIGRATIONS / f"{name}.sql").read_text())


def applied(connection: duckdb.DuckDBPyConnection) -> dict[str, str | None]:
    """The applied migrations by name, each with its checksum at that time."""
    columns = "SELECT column_name FROM duckdb_columns() WHERE table_name = 'migrations'"
    known = {row[0] for row in connection.execute(columns).fetchall()}
    if not known:
        return {}
    what = "checksum" if "checksum" in known else "NULL"
    return dict(connection.execute(f"SELECT name, {what} FROM migrations ORDER BY name").fetchall())


def check_version(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    """Refuse a store that was written by another program, by a newer distill, or by an unreleased one whose migrations
    have changed since."""
    found = applied(connection)
    if not found and (others := connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()):
        raise InputError(f"{path}: another program's database (it holds {others[0][0]}); choose another workspace")
    if unknown := sorted(set(found) - set(names())):
        raise InputError(f"{path}: written by a newer distill (it knows {unknown[-1]}); upgrade distill to read it")
    if changed := [name for name, was in found.items() if was != checksum(name)]:
        raise InputError(
            f"{path}: written by an unreleased distill with a different {changed[0]}; move the workspace away, "
            "or go back to that distill"
        )


def migrate(connection: duckdb.DuckDBPyConnection, path: str = "store") -> bool:
    """Apply missing migrations; returns whether there were any. DDL is checkpointed at once, since replaying it
    from a write-ahead log is a weak spot of DuckDB (duckdb/duckdb#19712)."""
    check_version(connection, path)
    wanted = missing(connection)
    new = len(wanted) == len(names())
    for together in [wanted] if new else [[name] for name in wanted]:
        with transaction(connection):
            connection.execute(
                "CREATE TABLE IF NOT EXISTS migrations (name VARCHAR, checksum VARCHAR, applied TIMESTAMP)"
            )
            for name in together:
                connection.execute((MIGRATIONS / f"{name}.sql").read_text())
                connection.execute("INSERT INTO migrations VALUES (?, ?, now())", [name, checksum(name)])
    if wanted:
        connection.execute("CHECKPOINT")
    return bool(wanted)


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


def missing(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """The migrations that a store lacks."""
    known = applied(connection)
    return [name for name in names() if name not in known]


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
