"""Read the rows of files in the usual formats: JSONL, JSON, CSV and Parquet, gzipped or not.

Every row knows its file and line, so that an error message can name them. What the columns mean is up to the caller's
mapping (`distill.sources.columns`).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import InputError

ESCAPED = re.compile("[\udc80-\udcff]")
"""The characters that `surrogateescape` puts in place of bytes that are not UTF-8."""
UNCLOSED = {"unexpected end of data": "a quotation mark is never closed"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row and its place. ``line`` is 1-based; it is the row's number if the format has no lines.

    ``fault`` is the reason why a row cannot be read. It is raised when a column of the row is requested, so that
    readers can go on after a bad row. ``name`` is the name of the rows if the path does not give it.
    """

    path: Path
    line: int
    values: Mapping[str, Any]
    fault: str | None = None
    name: str = ""

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"

    @property
    def stem(self) -> str:
        return self.name or stem(self.path)

    def get(self, column: str) -> Any:
        if self.fault is not None:
            raise InputError(f"{self.where}: {self.fault}")
        if column not in self.values:
            raise InputError(f"{self.where}: has no column {column!r}; it has {', '.join(self.values)}")
        return self.values[column]


def stem(path: Path) -> str:
    return path.name.split(".")[0]


def read(path: str | Path) -> Iterator[Row]:
    """The rows of a file, whose name gives its format: .jsonl, .json (a list), .csv, .tsv or .parquet; .gz too."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a directory, not a file of rows")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    form = path.name.removesuffix(".gz").rpartition(".")[2]
    readers = {
        "jsonl": _jsonl,
        "ndjson": _jsonl,
        "json": _json,
        "csv": _csv,
        "tsv": _csv,
        "parquet": _parquet,
    }
    if form not in readers:
        raise InputError(f"{path}: unknown format; the name should end in {', '.join('.' + f for f in readers)}")
    try:
        yield from readers[form](path)
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def count(path: str | Path) -> int:
    """The number of rows, counted without holding them, and where possible without reading what they hold."""
    path = Path(path)
    if path.name.endswith((".jsonl", ".ndjson")) and path.is_file():
        with open(path, "rb") as file:
            return sum(1 for line in file if line.strip())
    if path.suffix == ".parquet" and path.is_file():
        import pyarrow as pa
        import pyarrow.parquet as pq

        with suppress(OSError, pa.ArrowException):  # `read` reports what is wrong with the file
            return int(pq.ParquetFile(path).metadata.num_rows)
    return sum(1 for _ in read(path))


def _open(path: Path, errors: str = "strict") -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path, "rb"), encoding="utf-8-sig", errors=errors, newline="")
    return open(path, encoding="utf-8-sig", errors=errors, newline="")


def _mapping(value: Any, path: Path, line: int) -> Row:
    if not isinstance(value, Mapping):
        return Row(path, line, {}, f"expected an object with named columns, found {str(value)[:60]!r}")
    return Row(path, line, value)


def _jsonl(path: Path) -> Iterator[Row]:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                yield _mapping(json.loads(text.rstrip()), path, line)  # an error then counts columns of this line
            except json.JSONDecodeError as error:
                yield Row(path, line, {}, f"not valid JSON ({error.msg}, column {error.colno})")
            except UnicodeDecodeError:
                yield Row(path, line, {}, "not UTF-8 text")
            except (ValueError, RecursionError) as error:  # a number that is too long, lists nested too deeply
                yield Row(path, line, {}, f"not readable ({error})")


def _json(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        try:
            data = json.load(file)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(data, list):
        raise InputError(f"{path}: expected a list of rows")
    for line, value in enumerate(data, 1):
        yield _mapping(value, path, line)


def _csv(path: Path) -> Iterator[Row]:
    """Yield the rows, each with the line on which it begins. Invalid CSV or UTF-8 is the fault of its row. A quotation
    mark that is never closed swallows the rest of the file and is reported where it opens."""
    delimiter = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
    with _open(path, errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        csv.field_size_limit(2**31 - 1)  # a reasoning trace may be longer than the default limit of 128 KiB
        names: list[str] | None = None
        fault: str | None
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells, fault = [], f"not valid CSV ({UNCLOSED.get(str(error), error)})"
            else:
                fault = _fault_of(cells)
            if names is None:
                names = _head(path, line, cells, fault)
            elif cells or fault:
                yield _csv_row(path, line, names, cells, fault)


def _head(path: Path, line: int, names: list[str], fault: str | None) -> list[str] | None:
    """The names of the columns; None if the line is empty."""
    if fault:
        raise InputError(f"{path}:{line}: {fault}")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{path}:{line}: has two columns called {twice!r}; rename one")
    return names or None


def _csv_row(path: Path, line: int, names: list[str], cells: list[str], fault: str | None) -> Row:
    if len(cells) > len(names):
        fault = fault or f"has {len(cells) - len(names)} cell(s) more than the header"
    return Row(path, line, dict(zip_longest(names, cells[: len(names)])), fault)


def _fault_of(cells: list[str]) -> str | None:
    """Bytes that are not UTF-8 were decoded as lone surrogates, which no valid text contains."""
    return "not UTF-8 text" if any(ESCAPED.search(cell) for cell in cells) else None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for values in batch.to_pylist():
                line += 1
                yield Row(path, line, values)
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})") from None
