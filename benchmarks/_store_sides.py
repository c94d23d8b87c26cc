"""The trace store, JSONL and SQLite: how each ingests a batch of rows and answers the selection query.

The selection query asks for the four shortest correct traces of each problem, with their text, fetched in batches. For
ours it is written as a person would write it (``query``). Two variants are measured beside it. ``keys_first`` selects
the keys first and then the texts by a semi-join; ``query`` should take at most 1.5 times as long. ``stages`` does what
the stages do: the keys become members of a collection, whose texts are read as sft reads them. It costs more, because
the rows are written and read back. SQLite has an index and selects the keys first; JSONL is read three times by a short
program.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from _made_traces import BATCH, Rows

from distill.store import Store, schema
from distill.store.records import of_kept, record_members

TABLES = ("problems", "traces", "verdicts")
NATURAL = """
    SELECT thinking, answer FROM (
        SELECT t.*, row_number() OVER (
            PARTITION BY t.prompt_key ORDER BY t.thinking_tokens + t.answer_tokens, t.trace_key) AS nth
        FROM traces t JOIN verdicts v ON v.trace_key = t.trace_key WHERE v.outcome = 'correct') ranked
    WHERE nth <= 4
"""
BEST = """
    SELECT trace_key FROM (
        SELECT t.trace_key, row_number() OVER (
            PARTITION BY t.prompt_key ORDER BY t.thinking_tokens + t.answer_tokens, t.trace_key) AS nth
        FROM traces t JOIN verdicts v ON v.trace_key = t.trace_key WHERE v.outcome = 'correct') ranked
    WHERE nth <= 4
"""
KEYS_FIRST = f"SELECT thinking, answer FROM traces WHERE trace_key IN ({BEST})"


class Ours:
    """`select` does what the stages do: the chosen keys become members of a collection, and the texts of its members
    are read."""

    def __init__(self, directory: Path) -> None:
        self.store = Store(directory)

    def add(self, table: str, rows: Rows) -> None:
        self.store.append(table, rows)
        self.store.ingest()

    def close(self) -> None:
        self.store.mend()

    def judged(self) -> None:
        """Record the verdicts as members of a collection, as a verify stage does."""
        with self.store.reading() as connection:
            keys = [("verdict", key) for (key,) in connection.execute("SELECT verdict_key FROM verdicts").fetchall()]
        self.verdicts = record_members(self.store, keys)

    def select(self) -> int:
        with self.store.reading() as connection:
            best = [("kept", key) for (key,) in connection.execute(BEST).fetchall()]
        collection = record_members(self.store, best)
        rows = of_kept(self.store, collection, self.verdicts, "m.position, t.trace_key, t.thinking, t.answer, p.*")
        return sum(len(row["thinking"]) + len(row["answer"]) for row in rows)

    def query(self, sql: str) -> int:
        with self.store.reading() as connection:
            return _length(connection.execute(sql))


def _length(result: Any) -> int:
    """The total length of all texts, which are fetched in batches as a real reader would."""
    length = 0
    while rows := result.fetchmany(BATCH):
        length += sum(len(thinking) + len(answer) for thinking, answer in rows)
    return length


class Jsonl:
    def __init__(self, directory: Path) -> None:
        self._paths = {table: directory / f"{table}.jsonl" for table in TABLES}

    def add(self, table: str, rows: Rows) -> None:
        with open(self._paths[table], "a") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        pass

    def select(self) -> int:
        """Read the traces in two passes, so that not all texts are held in memory."""
        right = {v["trace_key"] for v in self._read("verdicts") if v["outcome"] == "correct"}
        of_prompt: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for t in self._read("traces"):
            if t["trace_key"] in right:
                of_prompt[t["prompt_key"]].append((t["thinking_tokens"] + t["answer_tokens"], t["trace_key"]))
        kept = {key for found in of_prompt.values() for _, key in sorted(found)[:4]}
        return sum(len(t["thinking"]) + len(t["answer"]) for t in self._read("traces") if t["trace_key"] in kept)

    def _read(self, table: str) -> Iterator[dict[str, Any]]:
        with open(self._paths[table]) as lines:
            yield from map(json.loads, lines)


class Sqlite:
    def __init__(self, directory: Path) -> None:
        self._connection = sqlite3.connect(directory / "store.sqlite")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        for table in TABLES:
            columns = ", ".join(schema.arrow_schemas()[table].names)
            self._connection.execute(f"CREATE TABLE {table} ({columns}, PRIMARY KEY ({schema.KEYS[table][0]}))")
        self._connection.execute("CREATE INDEX by_trace ON verdicts (trace_key)")

    def add(self, table: str, rows: Rows) -> None:
        marks = ", ".join("?" * len(rows[0]))
        values = [[str(v) if isinstance(v, datetime) else v for v in row.values()] for row in rows]
        with self._connection:
            sql = f"INSERT OR IGNORE INTO {table} ({', '.join(rows[0])}) VALUES ({marks})"
            self._connection.executemany(sql, values)

    def close(self) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def select(self) -> int:
        return _length(self._connection.execute(KEYS_FIRST))


Side = Ours | Jsonl | Sqlite
