"""Write the rows of a query to a .csv, .jsonl or .parquet file. The rows are streamed, and the file gets its name once
it is complete. A Parquet file has the types of the query, not of the values that happen to come first."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cli.table import as_line
from pipeline.errors import InputError
from pipeline.files import disk_errors, fsync_directory
from pipeline.scratch import scratch

if TYPE_CHECKING:
    import pyarrow as pa

FORMS = (".csv", ".jsonl", ".parquet")
Row = Mapping[str, Any]


def check_output(path: Path) -> None:
    if path.suffix not in FORMS:
        raise InputError(f"--output {path}: the name should end in {', '.join(FORMS)}")
    if path.exists():
        raise InputError(f"{path}: exists already; name another file")


def write_rows(path: Path, names: Sequence[str], rows: Iterable[Row]) -> int:
    """Write rows with these columns as CSV or JSON lines, and return their number."""
    return _whole(path, lambda file: _csv(file, names, rows) if path.suffix == ".csv" else _jsonl(file, rows))


def write_parquet(path: Path, reader: pa.RecordBatchReader, names: Sequence[str], limit: int | None) -> int:
    """Write at most ``limit`` rows of a query as Parquet, under these names of columns, and return their number."""
    return _whole(path, lambda file: _parquet(file, reader, names, limit))


def _whole(path: Path, write: Callable[[Path], int]) -> int:
    with scratch(path.absolute().parent, path.name) as directory, disk_errors(path):
        temporary = directory / path.name
        count = write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_directory(path.absolute().parent)
    return count


def _csv(path: Path, names: Sequence[str], rows: Iterable[Row]) -> int:
    count = 0
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for row in rows:
            count += 1
            writer.writerow(row.values())
    return count


def _jsonl(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            count += 1
            file.write(as_line(row) + "\n")
    return count


def _parquet(path: Path, reader: pa.RecordBatchReader, names: Sequence[str], limit: int | None) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, _type(field.type)) for name, field in zip(names, reader.schema, strict=True)])
    count = 0
    try:
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for batch in _batches(reader):
                left = batch.num_rows if limit is None else limit - count
                table = pa.Table.from_batches([batch]).slice(0, left).rename_columns(list(names)).cast(schema)
                writer.write_table(table)
                count += table.num_rows
                if count == limit:
                    break
    except pa.ArrowException as error:
        raise InputError(f"{path.name}: a column cannot be written ({error}); cast it in the query") from None
    return count


def _batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """What the query returns. pyarrow raises its errors as `OSError`, like those of the disk."""
    try:
        yield from reader
    except OSError as error:
        raise InputError(" ".join(str(error).split())[:500]) from None


def _type(found: pa.DataType) -> pa.DataType:
    """The type of a column. Sums of whole numbers, which DuckDB makes with 128 bits, become usual ones."""
    import pyarrow as pa

    return pa.int64() if found == pa.decimal128(38, 0) else found
