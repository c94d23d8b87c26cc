"""Durable shards: what producers append, and the journal from which the store can be rebuilt.

A shard is a Parquet file of rows for one table, published by a rename after an fsync: once `write` returns, no crash
loses it. The store ingests shards by key, so ingesting twice is harmless, and then merges them into the journal. So
DuckDB's file is an index that can always be rebuilt.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.store.schema import arrow_schemas
from pipeline.files import TEMPORARY, disk_errors, fsync_directory, make_directory

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

ROW_GROUP_ROWS = 10_000
ROW_GROUP_BYTES = 64 << 20
"""The most that is held in memory of a file being merged; long traces make shorter row groups."""
REPEATING = ("prompt_key", "model", "engine", "finish", "prompt", "source", "split", "verifier", "version", "settings",
             "outcome", "licence", "collection", "label", "run", "name")  # fmt: skip
"""Columns worth dictionary encoding; for texts that never repeat, it costs time and gains nothing."""


def write(directory: Path, table: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Append ``rows`` (plain dicts; absent columns become null) as one durable shard."""
    import pyarrow as pa

    content = pa.Table.from_pylist(list(rows), schema=arrow_schemas()[table])
    final = directory / table / fresh_name()
    merge(final, table, [content])
    return final


def fresh_name() -> str:
    """A new file name. Names sort by time, so that of two rows with the same key, the one written first is kept."""
    return f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"


def merge(final: Path, table: str, parts: Iterable[pa.Table]) -> int:
    """Write Arrow tables as one file, all or nothing. Returns the number of rows; without any, no file is made."""
    import pyarrow.parquet as pq

    schema = arrow_schemas()[table]
    make_directory(final.parent)
    temporary = final.with_name(TEMPORARY + final.name)
    dictionaries = [name for name in schema.names if name in REPEATING]
    count = 0
    with disk_errors(final):
        try:
            with open(temporary, "wb") as file:
                with pq.ParquetWriter(
                    file, schema, compression="zstd", write_page_checksum=True, use_dictionary=dictionaries
                ) as writer:
                    for group in _row_groups(parts):
                        writer.write_table(_conform(group, schema), row_group_size=ROW_GROUP_ROWS)
                        count += group.num_rows
                file.flush()
                os.fsync(file.fileno())
            if count:
                os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(final.parent)
    return count


def _row_groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of ``parts`` in row groups, large enough to be read efficiently and small enough for memory."""
    import pyarrow as pa

    held: list[pa.Table] = []
    count = size = 0
    for part in parts:
        if part.num_rows:
            held.append(part)
            count, size = count + part.num_rows, size + part.nbytes
        if count >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield pa.concat_tables(held, promote_options="default")
            held, count, size = [], 0, 0
    if held:
        yield pa.concat_tables(held, promote_options="default")


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of ``schema``; those that an older version of it lacks are null."""
    import pyarrow as pa

    if table.schema.equals(schema):
        return table
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def rows(paths: Iterable[Path], without: Mapping[Path, Container[int]] | None = None) -> Iterator[pa.Table]:
    """The rows of files, a row group at a time, except those whose numbers are in ``without``."""
    import pyarrow.parquet as pq

    for path in paths:
        leave, first = (without or {}).get(path, ()), 0
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for index in range(file.num_row_groups):
                part = file.read_row_group(index)
                mask = [first + row not in leave for row in range(part.num_rows)] if leave else None
                first += part.num_rows
                yield part if mask is None else part.filter(mask)


def batches(connection: duckdb.DuckDBPyConnection, sql: str, size: int = 2_000) -> Iterator[pa.Table]:
    """The result of a query, streamed ``size`` rows at a time."""
    import pyarrow as pa

    for batch in connection.sql(sql).to_arrow_reader(size):
        yield pa.Table.from_batches([batch])


def move(path: Path, final: Path) -> Path:
    """Move a finished file; if it is there already, nothing happens."""
    if path != final:
        make_directory(final.parent)
        with disk_errors(final):
            os.replace(path, final)
            fsync_directory(final.parent)
    return final


def pending(directory: Path, table: str) -> list[Path]:
    """Finished shards of a table, oldest first."""
    return sorted(p for p in (directory / table).glob("*.parquet") if not p.name.startswith(TEMPORARY))


def count(path: Path) -> int:
    """The number of rows of a shard, from its footer; -1 if that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowInvalid):
        return -1


def grouped(paths: Iterable[Path], most: int) -> Iterator[list[Path]]:
    """Files in groups of about ``most`` rows."""
    group: list[Path] = []
    rows = 0
    for path in paths:
        group.append(path)
        rows += count(path)
        if rows >= most:
            yield group
            group, rows = [], 0
    if group:
        yield group


def readable(path: Path) -> bool:
    """Whether all of a shard can be read; a damaged one (a failing disk) must not stop the others.

    Errors of the machine, not of the file (no descriptors, no memory, no permission), are raised.
    """
    import pyarrow as pa

    try:
        for _ in rows([path]):
            pass
    except (OSError, pa.ArrowInvalid) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return False
    return True
