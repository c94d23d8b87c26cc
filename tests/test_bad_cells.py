"""Cells that JSON and Parquet can hold but a store cannot: converted, or reported in one line with their place."""

from __future__ import annotations

import gzip
import json
import zlib
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.sources import tables
from distill.sources.columns import ProblemColumns
from distill.sources.published import TraceColumns
from distill.store import Store
from distill.store.records import problem_row
from pipeline.errors import InputError


def problem(cells: str, difficulty: str | None = None, reference: Any = "a") -> Any:
    """The problem in one line of JSON."""
    row = tables.Row(Path("f.jsonl"), 3, json.loads(cells))
    columns = ProblemColumns("q", reference, difficulty=difficulty)
    return columns.problem(row, "math", "s", "train", "MIT")


@pytest.mark.parametrize(
    ("cells", "reference"),
    [
        (r'{"q": "half \ud83d a letter", "a": "1 \udc00"}', "a"),
        (r'{"q": "{{", "a": ["\ud800"]}', {"tests": "a"}),
        (r'{"q": "half \ud83d", "a": "1"}', "{{ q }}"),
    ],
)
def test_a_lone_surrogate_is_stored_as_the_replacement_character(cells: str, reference: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = problem(cells, reference=reference)
    store.append("problems", [problem_row(found)])
    store.ingest()
    (row,) = store.rows("SELECT prompt || reference AS text FROM problems")
    assert "\ufffd" in row["text"]


def test_a_lone_surrogate_in_a_trace_becomes_the_replacement_character() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": r"<think>\ud83d</think>\ude00"}]
    row = tables.Row(Path("f.jsonl"), 1, json.loads(json.dumps({"m": turns}).replace("\\\\u", "\\u")))
    found = TraceColumns(messages="m").read(row)
    assert (found.thinking, found.answer) == ("\ufffd", "\ufffd")


@pytest.mark.parametrize("difficulty", ["1e999", "1000000000000", "2.5", "NaN", '"hard"'])
def test_a_difficulty_that_is_not_an_integer_is_reported_with_its_line(difficulty: str) -> None:
    with pytest.raises(InputError, match=r"^f\.jsonl:3: column 'd' is not a whole number"):
        problem(f'{{"q": "x", "a": "1", "d": {difficulty}}}', "d")


@pytest.mark.parametrize("difficulty", ["null", '""'])
def test_an_empty_difficulty_is_unknown(difficulty: str) -> None:
    assert problem(f'{{"q": "x", "a": "1", "d": {difficulty}}}', "d").difficulty is None


def test_counting_rows_agrees_with_reading_them(tmp_path: Path) -> None:
    lines = b'\n{"a": 1}\r\n \nnot json\n\xff\n{"a": "x\xe2\x80\xa8y"}'
    (tmp_path / "r.jsonl").write_bytes(lines)
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "r.csv").write_bytes(b'a,b\n1,"x\ny"\n\n2,3\n')
    pq.write_table(pa.table({"a": range(2500)}), tmp_path / "r.parquet")
    found = {path.name: (tables.count(path), len(list(tables.read(path)))) for path in tmp_path.iterdir()}
    assert found == {"r.jsonl": (4, 4), "r.jsonl.gz": (4, 4), "r.csv": (2, 2), "r.parquet": (2500, 2500)}
    (tmp_path / "r.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        tables.count(tmp_path / "r.parquet")


def test_nan_in_tests_is_reported_with_its_line() -> None:
    with pytest.raises(InputError, match=r"^f\.jsonl:3: column 'a' holds NaN"):
        problem('{"q": "x", "a": [NaN]}', reference={"tests": "a"})


def test_decimals_and_dates_of_parquet_become_text_and_bytes_are_refused(tmp_path: Path) -> None:
    cells = {"q": ["x"], "decimal": [Decimal("1.50")], "date": [date(2026, 2, 1)], "bytes": [b"\xff"]}
    pq.write_table(pa.table(cells), tmp_path / "f.parquet")
    (row,) = tables.read(tmp_path / "f.parquet")
    read = {name: ProblemColumns("q", name).problem(row, "math", "s", "train", "MIT") for name in ("decimal", "date")}
    assert {name: found.reference for name, found in read.items()} == {"decimal": "1.50", "date": "2026-02-01"}
    both = ProblemColumns("q", {"of": "decimal"}).problem(row, "math", "s", "train", "MIT")
    assert json.loads(both.reference) == {"of": "1.50"}
    for reference in ("bytes", {"tests": "bytes"}):
        with pytest.raises(InputError, match=r"f\.parquet:1: column 'bytes' is neither text"):
            ProblemColumns("q", reference).problem(row, "math", "s", "train", "MIT")  # type: ignore[arg-type]


def test_a_damaged_gzip_is_a_one_line_error(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"q": "x"}\n' * 20)
    broken = whole[:10] + b"\xff" * 20 + whole[30:]
    with pytest.raises(zlib.error):
        gzip.decompress(broken)
    (tmp_path / "f.jsonl.gz").write_bytes(broken)
    with pytest.raises(InputError, match=r"f\.jsonl\.gz: cannot be read"):
        list(tables.read(tmp_path / "f.jsonl.gz"))


@pytest.mark.parametrize(
    ("row", "line", "said"),
    [
        (b'"two\nlines" and more,2\n', 3, "not valid CSV"),
        (b"1,2,3\n", 3, r"has 1 cell\(s\) more than the header"),
        (b"\xff\xfe,2\n", 3, "not UTF-8 text"),
        (b"1\n", 3, "column 'a' is empty"),
    ],
)
def test_a_bad_csv_row_is_reported_with_the_line_where_it_begins(
    row: bytes, line: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "f.csv").write_bytes(b'q,a\n"x",1\n' + row + b'"y\ny",2\n')
    found = list(tables.read(tmp_path / "f.csv"))
    good = [ProblemColumns("q", "a").problem(row, "math", "s", "train", "MIT").prompt for row in (found[0], found[-1])]
    assert good == ["x", "y\ny"] and len(found) == 3
    with pytest.raises(InputError, match=rf"f\.csv:{line}: {said}"):
        ProblemColumns("q", "a").problem(found[1], "math", "s", "train", "MIT")


def test_an_unclosed_quotation_mark_is_reported_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text('q,a\n1,2\n"3,4\n5,6\n7,8\n')
    good, bad = tables.read(tmp_path / "f.csv")
    assert good.values == {"q": "1", "a": "2"}
    assert bad.where.endswith("f.csv:3") and bad.fault == "not valid CSV (a quotation mark is never closed)"
