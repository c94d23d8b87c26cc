"""Durable shards: what producers append, and the journal from which the store can be rebuilt.

A shard is a Parquet file of rows for one table, published by rename after an fsync: once `append`
returns, no crash loses it. The store ingests shards by key, so ingesting twice does no harm; then
they are merged into the journal. DuckDB's file is thereby an index that can always be remade.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.store.schema import arrow_schemas
from pipeline.files import TEMPORARY, disk_errors, fsync_directory, make_directory

if TYPE_CHECKING:
    import pyarrow as pa


def write(directory: Path, table: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Append ``rows`` (plain dicts; absent columns become null) as one durable shard."""
    import pyarrow as pa

    return publish(directory / table, pa.Table.from_pylist(list(rows), schema=arrow_schemas()[table]))


def publish(directory: Path, content: pa.Table) -> Path:
    """Write an Arrow table under a fresh name in ``directory``: all of it or nothing."""
    import pyarrow.parquet as pq

    make_directory(directory)
    # Names sort by time, so that of two rows with one key the first written is kept.
    final = directory / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
    temporary = final.with_name(TEMPORARY + final.name)
    with disk_errors(final):
        try:
            with open(temporary, "wb") as file:
                pq.write_table(content, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(directory)
    return final


def pending(directory: Path, table: str) -> list[Path]:
    """Finished shards of a table, oldest first."""
    return sorted(p for p in (directory / table).glob("*.parquet") if not p.name.startswith(TEMPORARY))


def readable(path: Path) -> bool:
    """Whether a shard can be read whole; a damaged one (a failing disk) must not stop the others."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_table(path)
    except (OSError, pa.ArrowException):
        return False
    return True
