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

    table_of_rows = pa.Table.from_pylist(list(rows), schema=arrow_schemas()[table])
    return publish(directory / table / fresh_name(), table_of_rows)


def fresh_name() -> str:
    """Names sort by time, so that of two rows with one key the first written is kept."""
    return f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"


def publish(final: Path, content: pa.Table) -> Path:
    """Write an Arrow table as ``final``: all of it or nothing."""
    import pyarrow.parquet as pq

    make_directory(final.parent)
    temporary = final.with_name(TEMPORARY + final.name)
    with disk_errors(final):
        try:
            with open(temporary, "wb") as file:
                pq.write_table(content, file, compression="zstd", write_page_checksum=True)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(final.parent)
    return final


def pending(directory: Path, table: str) -> list[Path]:
    """Finished shards of a table, oldest first."""
    return sorted(p for p in (directory / table).glob("*.parquet") if not p.name.startswith(TEMPORARY))


def readable(path: Path) -> bool:
    """Whether a shard can be read whole; a damaged one (a failing disk) must not stop the others.

    What is wrong with the machine and not with the file (no descriptors, no memory, no permission) is raised.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return False
    return True
