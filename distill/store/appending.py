"""Appends rows that arrive one by one, often enough that a crash loses about a second of them.

For stages that stream: `add` each row, call `tick` every second or so, and `flush` at the end. Thread-safe; `add` never
waits for the disk. Rows are appended table by table, in the order of ``tables``: a row is never on disk without the
rows that were added before it to its own or an earlier table. So there is never a verdict without its trace.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from distill.store.records import Row
from distill.store.store import Store

APPEND_SECONDS = 0.5
APPEND_ROWS = 512
INGEST_SECONDS = 10.0


class Appender:
    def __init__(self, store: Store, tables: Sequence[str] = ("traces",)) -> None:
        self._store = store
        self._rows: dict[str, list[Row]] = {table: [] for table in tables}
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._appended = self._ingested = time.monotonic()

    def add(self, table: str, row: Row) -> None:
        with self._lock:
            self._rows[table].append(row)

    def tick(self) -> None:
        """Append rows that have waited long enough; ingest them into the store every few seconds."""
        now = time.monotonic()
        if now - self._appended >= APPEND_SECONDS or sum(map(len, self._rows.values())) >= APPEND_ROWS:
            self.flush()
        if now - self._ingested >= INGEST_SECONDS:
            with self._writing:
                self._store.ingest_if_free()
                self._ingested = time.monotonic()

    def flush(self) -> None:
        with self._writing:
            with self._lock:  # all tables at one moment
                rows = {table: list(waiting) for table, waiting in self._rows.items()}
            for table, taken in rows.items():
                self._store.append(table, taken)
                with self._lock:
                    del self._rows[table][: len(taken)]
            self._appended = time.monotonic()
