"""A store used by several threads of one process: each waits for the others, as processes do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distill.store import Store
from pipeline.errors import Busy


def rows(*keys: str) -> list[dict[str, Any]]:
    return [{"problem_key": key, "prompt": f"what is {key}?"} for key in keys]


def count(store: Store) -> int:
    return int(store.rows("SELECT count(*) AS n FROM problems")[0]["n"])


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture
def store(tmp_path: Path) -> Store:
    notes: list[str] = []
    made = Store(tmp_path, notes.append)
    made.append("problems", rows("a"))
    made.ingest()
    assert not notes
    return made


def test_a_writer_waits_for_readers(store: Store, pool: ThreadPoolExecutor) -> None:
    store.append("problems", rows("b"))
    with store.reading() as connection:
        with pytest.raises(Busy, match="this process"):
            store.ingest(patience=0.0)
        later = pool.submit(store.ingest)
        assert connection.execute("SELECT count(*) FROM problems").fetchall() == [(1,)]
    assert later.result() == {"problems": 1}
    assert count(store) == 2
    assert not list(store.path.parent.glob("*damaged*"))


def test_concurrent_threads_lose_and_duplicate_no_rows(store: Store, pool: ThreadPoolExecutor) -> None:
    together = threading.Barrier(8)

    def work(number: int) -> None:
        mine = Store(store.path.parent)
        together.wait()
        for turn in range(4):
            mine.append("problems", rows(f"{number}-{turn}", f"shared-{turn}"))
            mine.ingest()
            assert mine.present("problems", [f"{number}-{turn}"])

    for done in [pool.submit(work, number) for number in range(8)]:
        done.result()
    assert count(store) == 1 + 8 * 4 + 4
    assert store.rows("SELECT count(DISTINCT problem_key) AS n FROM problems") == [{"n": 37}]
    assert not list(store.path.parent.glob("*damaged*"))
