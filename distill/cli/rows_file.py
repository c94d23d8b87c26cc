"""Write the rows of a query to a .csv, .jsonl or .parquet file. The rows are streamed, and the file gets its name once
it is complete."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from distill.cli.table import as_line
from pipeline.errors import InputError
from pipeline.files import disk_errors, fsync_directory
from pipeline.scratch import scratch

FORMS = (".csv", ".jsonl", ".parquet")
BATCH = 1_000
Row = Mapping[str, Any]


def check_output(path: Path) -> None:
    if path.suffix not in FORMS:
        raise InputError(f"--output {path}: the name should end in {', '.join(FORMS)}")
    if path.exists():
        raise InputError(f"{path}: exists already; name another file")


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write the rows and return their number."""
    form = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix]
    with scratch(path.absolute().parent, path.name) as directory, disk_errors(path):
        temporary = directory / path.name
        count = form(temporary, iter(rows))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_directory(path.absolute().parent)
    return count


def _csv(path: Path, rows: Iterator[Row]) -> int:
    count = 0
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for count, row in enumerate(rows, 1):
            if count == 1:
                writer.writerow(row)
            writer.writerow(row.values())
    return count


def _jsonl(path: Path, rows: Iterator[Row]) -> int:
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            count += 1
            file.write(as_line(row) + "\n")
    return count


def _parquet(path: Path, rows: Iterator[Row]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = pa.Table.from_pylist([dict(row) for row in islice(rows, BATCH)])
    count = first.num_rows
    try:
        with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
            writer.write_table(first)
            while batch := [dict(row) for row in islice(rows, BATCH)]:
                writer.write_table(pa.Table.from_pylist(batch, schema=first.schema))
                count += len(batch)
    except pa.ArrowException as error:
        raise InputError(f"{path.name}: a column does not keep its type ({error}); cast it in the query") from None
    return count
