"""A store used by several threads of one process: each waits for the others, as processes do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pytest

from distill.store import Store, attaching
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


WRITER = """
import sys
from pathlib import Path
from distill.store import Store
from pipeline.errors import Busy
store = Store(Path(sys.argv[1]))
store.append("problems", [{"problem_key": "elsewhere", "prompt": "?"}])
try:
    store.ingest(patience=0.0)
    print("wrote")
except Busy as error:
    print(error)
"""


def write_elsewhere(store: Store) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(store.path.parent)], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_a_query_does_not_give_away_the_lock_of_another_reader(store: Store) -> None:
    """A process that closes one handle of a file loses the locks of all that it has on it."""
    with store.reading() as connection:
        assert count(store) == 1
        assert f"process {os.getpid()}" in write_elsewhere(store)
        assert connection.execute("SELECT count(*) FROM problems").fetchall() == [(1,)]
    assert write_elsewhere(store) == "wrote\n"
    assert count(store) == 2


def test_a_reader_waits_for_a_query_however_long(
    store: Store, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.store.store.READER_PATIENCE", 0.0)
    query = pool.submit(store.rows, "SELECT sum(hash(range)) IS NULL AS no FROM range(100000000)")
    while not attaching.attached(store.path):
        assert not query.done()
    with store.reading() as connection:
        assert query.result() == [{"no": False}]
        assert connection.execute("SELECT count(*) FROM problems").fetchall() == [(1,)]


def test_nobody_holds_a_store_that_was_queried(store: Store) -> None:
    assert count(store) == 1
    assert write_elsewhere(store) == "wrote\n"
    assert count(store) == 2


def test_two_stores_are_queried_at_once(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    stores = [Store(tmp_path / name) for name in ("it's one", "another")]
    for number, store in enumerate(stores):
        store.append("problems", rows(*(f"{number}-{n}" for n in range(number + 1))))
        store.ingest()
    together = threading.Barrier(8)

    def ask(number: int) -> int:
        together.wait()
        return sum(count(stores[number % 2]) for _ in range(20))

    assert [done.result() for done in [pool.submit(ask, number) for number in range(8)]] == [20, 40] * 4


FORKING = """
import os, sys
from pathlib import Path
from distill.store import Store
store = Store(Path(sys.argv[1]))
query = "SELECT count(*) AS n FROM problems"
assert store.rows(query) == [{"n": 1}]
child = os.fork()
assert store.rows(query) == [{"n": 1}]
if child:
    sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_queries_and_ends_like_its_parent(store: Store) -> None:
    subprocess.run([sys.executable, "-c", FORKING, str(store.path.parent)], check=True, timeout=60)


def test_a_connection_made_without_the_store_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.store.store.READER_PATIENCE", 0.0)
    with duckdb.connect(str(store.path)), pytest.raises(Busy, match="held by another connection of this process"):
        count(store)
    assert count(store) == 1


def test_settings_of_a_reader_are_its_own(store: Store) -> None:
    setting = "SELECT current_setting('memory_limit') AS now"
    before = store.rows(setting)
    with store.reading() as connection:
        connection.execute("SET memory_limit = '77MB'")
    assert store.rows(setting) == before


def test_a_query_larger_than_memory_spills_into_the_workspace_and_leaves_nothing_there(store: Store) -> None:
    limit, spill = "SELECT current_setting('memory_limit') AS now", store.path.with_name("store.duckdb.tmp")
    before = store.rows(limit)
    store.rows("SET memory_limit = '64MB'")
    large = "SELECT count(DISTINCT b) AS n FROM (SELECT hash(range) AS b FROM range(4000000) ORDER BY b)"
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(store.rows, large)
        while not spill.exists():
            assert not found.done()
        assert found.result() == [{"n": 4_000_000}]
    assert not spill.exists()
    assert store.rows(limit) == before  # by another DuckDB: the first has used the disk
