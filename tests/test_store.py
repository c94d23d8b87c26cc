"""The trace store: durable shards, an idempotent ingest, readers beside a writer, and recovery from damage."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.keys import problem_key, trace_key
from distill.store import Store, schema, shards
from distill.store.opening import NoMemory
from distill.store.records import problem_of, problem_row, problems, record_members
from distill.types import Problem, Sampling
from pipeline.errors import Exit, InputError


def rows(*keys: str) -> list[dict[str, Any]]:
    return [{"problem_key": key, "prompt": f"what is {key}?"} for key in keys]


def keys_in(store: Store) -> list[str]:
    return [row["problem_key"] for row in store.rows("SELECT problem_key FROM problems ORDER BY 1")]


def test_rows_are_ingested_once_and_the_first_of_a_key_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("problems", rows("a", "b"))
    store.append("problems", [{"problem_key": "a", "prompt": "another text"}])
    assert store.ingest() == {"problems": 2}
    assert store.ingest() == {}
    store.append("problems", rows("b", "c"))
    assert store.ingest() == {"problems": 1}
    assert store.rows("SELECT prompt FROM problems WHERE problem_key = 'a'") == [{"prompt": "what is a?"}]
    assert store.present("problems", ["a", "c", "z"]) == {"a", "c"}


@settings(max_examples=15, deadline=None)
@given(batches=st.lists(st.lists(st.sampled_from("abcdef"), max_size=5), max_size=5))
def test_the_store_holds_the_set_of_appended_keys(batches: list[list[str]], tmp_path_factory: Any) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    for batch in batches:
        store.append("problems", rows(*batch))
        store.ingest()
    store.ingest()
    assert keys_in(store) == sorted({key for batch in batches for key in batch})


def test_a_store_that_the_disk_cannot_hold_is_made_once_there_is_room(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("problems", rows("a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(InputError, match=r"store\.duckdb: no space left on the disk, or in your quota; free some"):
            store.ingest()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.ingest() == {"problems": 1}
    assert keys_in(store) == ["a"]


def test_the_next_run_finds_the_shards_of_an_interrupted_one(tmp_path: Path) -> None:
    Store(tmp_path).append("problems", rows("a"))
    (tmp_path / "shards/problems/.tmp-torn.parquet").write_bytes(b"PAR1 torn")
    store = Store(tmp_path)
    store.ingest()
    assert keys_in(store) == ["a"]


def test_a_damaged_shard_is_set_aside_and_reported(tmp_path: Path) -> None:
    notes: list[str] = []
    store = Store(tmp_path, notes.append)
    store.append("problems", rows("a"))
    shard = shards.pending(store.shards, "problems")[0]
    shard.write_bytes(shard.read_bytes()[:-20])
    store.append("problems", rows("b"))
    store.ingest()
    assert keys_in(store) == ["b"]
    assert "damaged; set aside" in notes[0]
    assert list(store.shards.rglob("*.damaged"))


@pytest.mark.parametrize("damage", ["lost", "garbage", "truncated"])
def test_a_damaged_store_is_rebuilt_from_the_journal(damage: str, tmp_path: Path) -> None:
    notes: list[str] = []
    store = Store(tmp_path, notes.append)
    store.append("problems", rows("a", "b"))
    store.ingest()
    if damage == "lost":
        store.path.unlink()
    else:
        content = store.path.read_bytes()
        store.path.write_bytes(b"garbage" * 500 if damage == "garbage" else content[:3000])
    store.append("problems", rows("c"))
    store.ingest()
    assert keys_in(store) == ["a", "b", "c"]
    assert damage == "lost" or "remade from the journal" in notes[0]


@pytest.mark.parametrize("by", [Store.mend, Store.refresh])
def test_a_deleted_database_is_rebuilt_before_anything_reads(by: Callable[[Store], None], tmp_path: Path) -> None:
    """`distill plan` must not count as lost what the next run restores."""
    notes: list[str] = []
    store = Store(tmp_path, notes.append)
    store.append("problems", rows("a", "b"))
    store.ingest()
    store.path.unlink()
    by(store)
    assert keys_in(store) == ["a", "b"]
    assert by is Store.refresh or notes == [f"{store.path}: was missing; remade from the journal"]


def test_a_damaged_wal_is_set_aside(tmp_path: Path) -> None:
    notes: list[str] = []
    store = Store(tmp_path, notes.append)
    store.append("problems", rows("a"))
    store.ingest()
    wal = tmp_path / "store.duckdb.wal"
    wal.write_bytes(b"\x00\x01garbage" * 100)
    store.append("problems", rows("b"))
    store.ingest()
    assert keys_in(store) == ["a", "b"]


def test_reading_a_damaged_store_is_an_error_of_one_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.path.write_bytes(b"garbage" * 500)
    with pytest.raises(InputError, match=r"cannot be read: .*; the next `distill run` remakes it"):
        store.rows("SELECT 1")


def test_an_unreadable_store_is_rebuilt_before_a_run(tmp_path: Path) -> None:
    notes: list[str] = []
    store = Store(tmp_path, notes.append)
    store.mend()  # there is no store yet
    store.append("problems", rows("a", "b"))
    store.ingest()
    store.mend()
    assert not notes
    with open(store.path, "r+b") as file:
        file.seek(4096 + 100)
        file.write(b"\xff" * 64)
    with pytest.raises(InputError, match="cannot be read"):
        store.rows("SELECT 1")
    store.mend()
    assert keys_in(store) == ["a", "b"]
    assert "remade from the journal" in notes[0]


@pytest.mark.parametrize("loss", ["an older copy put back", "rows deleted"])
def test_lost_rows_are_restored_before_a_run(loss: str, tmp_path: Path) -> None:
    notes: list[str] = []
    store = Store(tmp_path, notes.append)
    store.append("problems", rows("a"))
    store.ingest()
    older = store.path.read_bytes()
    store.append("problems", rows("b", "c"))
    store.ingest()
    if loss == "rows deleted":
        with duckdb.connect(str(store.path)) as connection:
            connection.execute("DELETE FROM problems WHERE problem_key > 'a'")
    else:
        store.path.write_bytes(older)
    assert keys_in(store) == ["a"]
    store.mend()
    assert keys_in(store) == ["a", "b", "c"]
    assert "lacked 2 rows; restored from the journal" in notes[0]
    store.mend()
    assert len(notes) == 1


def test_a_flipped_bit_in_a_shard_is_noticed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("problems", [{"problem_key": f"{n}", "prompt": f"{n * 7919}"} for n in range(2000)])
    (shard,) = shards.pending(store.shards, "problems")
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 1
    shard.write_bytes(content)
    assert not shards.readable(shard)


def test_a_shard_unreadable_for_lack_of_descriptors_is_not_called_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("problems", rows("a"))
    (shard,) = shards.pending(store.shards, "problems")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError):
            shards.readable(shard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert shards.readable(shard)


def test_a_store_unreadable_for_lack_of_memory_is_not_called_damaged(tmp_path: Path) -> None:
    """A store called damaged is moved away."""
    store = Store(tmp_path)
    store.append("problems", rows("a"))
    store.ingest()
    with pytest.raises(NoMemory, match="not enough memory to read it"), store.reading() as connection:
        connection.execute("SET memory_limit = '1MB'")
        connection.execute("SELECT list(range) FROM range(10000000)").fetchall()
    assert keys_in(store) == ["a"]


def test_a_long_reader_does_not_stop_a_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("problems", rows("a"))
    store.ingest()
    reader = subprocess.Popen([sys.executable, "-c", READER, str(tmp_path), "60"], stdout=subprocess.PIPE, text=True)
    assert reader.stdout and reader.stdout.readline() == "1\n"
    store.append("problems", rows("b"))
    store.ingest_if_free()
    assert shards.pending(store.shards, "problems")
    reader.kill()
    reader.communicate()
    store.ingest_if_free()
    assert keys_in(store) == ["a", "b"]


def test_a_damaged_store_is_rebuilt_even_if_its_path_contains_lock(tmp_path: Path) -> None:
    store = Store(tmp_path / "blocks")
    store.append("problems", rows("a"))
    store.ingest()
    store.path.write_bytes(b"garbage" * 500)
    store.mend()
    assert keys_in(store) == ["a"]


def test_a_killed_rebuild_is_not_taken_for_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("problems", rows("a"))
    store.ingest()
    store.path.rename(tmp_path / ".tmp-store.duckdb")  # as a killed rebuild leaves it: no store, a leftover
    (tmp_path / ".tmp-store.duckdb").write_bytes(b"half")
    store.append("problems", rows("b"))
    store.ingest()
    assert keys_in(store) == ["a", "b"]


@pytest.fixture
def next_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Called, it makes this the next distill, whose schema has a column more for problems and traces."""

    def release() -> None:
        directory = tmp_path / "migrations"
        shutil.copytree(schema.MIGRATIONS, directory)
        added = "ALTER TABLE problems ADD COLUMN note VARCHAR; ALTER TABLE trace_columns ADD COLUMN note VARCHAR;"
        (directory / "0002_notes.sql").write_text(added)
        monkeypatch.setattr(schema, "MIGRATIONS", directory)
        schema.arrow_schemas.cache_clear()

    yield release
    monkeypatch.undo()
    schema.arrow_schemas.cache_clear()


def test_the_next_version_brings_a_store_up_to_date(tmp_path: Path, next_version: Callable[[], None]) -> None:
    Store(tmp_path).append("problems", rows("a"))
    Store(tmp_path).append("traces", [{"trace_key": "a", "thinking": "so a it is"}])
    Store(tmp_path).ingest()
    Store(tmp_path).append("problems", rows("b"))  # a shard that the earlier version has left
    next_version()
    notes: list[str] = []
    store = Store(tmp_path, notes.append)
    with pytest.raises(InputError, match=r"made by an older distill; `distill run` brings it up to date"):
        keys_in(store)
    store.mend()
    store.ingest()
    store.append("problems", [{"problem_key": "c", "note": "new"}])
    store.append("traces", [{"trace_key": "c", "note": "new"}])
    for _ in ("brought up to date", "made anew from files of both versions"):
        store.ingest()
        assert store.rows("SELECT problem_key AS key, note FROM problems ORDER BY 1") == [
            {"key": "a", "note": None}, {"key": "b", "note": None}, {"key": "c", "note": "new"},
        ]  # fmt: skip
        assert store.rows("SELECT trace_key AS key, thinking, note FROM traces ORDER BY 1") == [
            {"key": "a", "thinking": "so a it is", "note": None}, {"key": "c", "thinking": None, "note": "new"},
        ]  # fmt: skip
        assert not notes
        store.path.unlink()


def test_a_store_of_a_newer_version_is_refused(
    tmp_path: Path, next_version: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    ours = schema.MIGRATIONS
    next_version()
    store.append("problems", rows("a"))
    store.ingest()
    monkeypatch.setattr(schema, "MIGRATIONS", ours)
    with pytest.raises(InputError, match=r"newer distill \(its schema is version 2, and this distill knows 1\)") as met:
        keys_in(store)
    assert met.value.exit_code is Exit.INPUT
    store.append("problems", rows("b"))
    for refused in (store.ingest, store.mend):
        with pytest.raises(InputError, match=r"written by a newer distill .*; upgrade distill to use it"):
            refused()


def test_a_journal_of_another_version_is_refused(
    tmp_path: Path, next_version: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the database was removed, not the workspace."""
    ours, store = schema.MIGRATIONS, Store(tmp_path)
    next_version()
    store.append("problems", rows("a"))
    store.ingest()
    store.path.unlink()
    monkeypatch.setattr(schema, "MIGRATIONS", ours)
    schema.arrow_schemas.cache_clear()
    with pytest.raises(
        InputError, match=r'journal: written by another version .*"note"\); use that one, or move'
    ) as met:
        store.mend()
    assert met.value.exit_code is Exit.INPUT and not store.path.exists()


READER = """
import sys, time
from pathlib import Path
from distill.store import Store
with Store(Path(sys.argv[1])).reading() as connection:
    print(connection.execute("SELECT count(*) FROM problems").fetchone()[0], flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_readers_and_the_writer_wait_for_each_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("problems", rows("a"))
    store.ingest()
    reader = subprocess.Popen([sys.executable, "-c", READER, str(tmp_path), "1"], stdout=subprocess.PIPE, text=True)
    assert reader.stdout and reader.stdout.readline() == "1\n"
    store.append("problems", rows("b"))
    store.ingest()  # waits until the reader closes
    assert keys_in(store) == ["a", "b"]
    assert reader.wait() == 0


WRITER = """
import sys
from pathlib import Path
from distill.store import Store
store = Store(Path(sys.argv[1]))
for n in range(10_000):
    store.append("problems", [{"problem_key": f"{n}", "prompt": "x" * 1000}])
    print(n, flush=True)
    if n % 3 == 0:
        store.ingest()
"""


def test_a_killed_writer_loses_no_row_that_append_returned_for(tmp_path: Path) -> None:
    for attempt in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout
        printed = [writer.stdout.readline() for _ in range(7 + 3 * attempt)]
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate()[0]
        last = int((rest.splitlines() or printed)[-1])
        store = Store(tmp_path)
        store.refresh()  # what `distill plan` and `distill traces` do before they read
        assert {str(n) for n in range(last + 1)} <= set(keys_in(store))


def test_refreshing_leaves_a_damaged_store_to_the_next_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("problems", rows("a"))
    store.ingest()
    store.append("problems", rows("b"))
    store.path.write_bytes(b"no database")
    Store(tmp_path).refresh()
    assert store.path.read_bytes() == b"no database"


def test_every_table_that_takes_rows_has_a_key() -> None:
    with duckdb.connect(":memory:") as connection:
        schema.migrate(connection)
        schema.migrate(connection)  # there is nothing left to do
        tables = {name for (name,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    own = {"schema_versions", "ingested", "trace_keys", "trace_columns"}
    assert tables - own == set(schema.KEYS) - {"traces"}


def test_every_column_of_a_key_exists() -> None:
    for table, key in schema.KEYS.items():
        assert set(key) <= set(schema.arrow_schemas()[table].names)


text = st.text(max_size=30)
problem = st.builds(
    Problem, id=text, prompt=text, reference=text, verifier=st.just("math"), source=text, split=st.just("train"),
    difficulty=st.none() | st.integers(0, 9), system=st.none() | text, metadata=st.dictionaries(text, st.integers()),
)  # fmt: skip


@given(problem)
def test_a_problem_is_read_back_from_its_row(original: Problem) -> None:
    assert problem_of(problem_row(original)) == original


@given(problem, text)
def test_a_problem_key_depends_on_content_and_not_on_name_or_split(original: Problem, other: str) -> None:
    renamed = replace(original, id=other, origin=other, split="heldout")
    assert problem_key(renamed) == problem_key(original)
    assert problem_key(replace(original, difficulty=11)) != problem_key(original)
    assert problem_key(replace(original, prompt=original.prompt + "!")) != problem_key(original)


def test_a_trace_key_covers_everything_that_determines_a_sample() -> None:
    one = Problem("p", "1 + 1", "2", "math", "s")
    base = Sampling(temperature=1.0, seed=1)
    key = trace_key(one, "model", base, 0)
    different = [
        trace_key(one, "model", base, 1),
        trace_key(one, "other", base, 0),
        trace_key(one, "model", Sampling(temperature=1.0, seed=2), 0),
        trace_key(one, "model", Sampling(temperature=0.9, seed=1), 0),
        trace_key(Problem("p", "1 + 2", "2", "math", "s"), "model", base, 0),
    ]
    assert len({key, *different}) == 6
    greedy = [trace_key(one, "model", Sampling(temperature=0.0, seed=seed), 0) for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def test_a_trace_key_does_not_cover_how_the_answer_is_checked() -> None:
    one = Problem("p", "1 + 1", "3", "math", "s")
    mended, otherwise = replace(one, reference="2"), replace(one, verifier="exact")
    assert len({problem_key(p) for p in (one, mended, otherwise)}) == 3
    assert len({trace_key(p, "model", Sampling(), 0) for p in (one, mended, otherwise)}) == 1


def test_members_keep_order_and_label(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = [Problem(f"p{i}", f"{i}", "0", "math", "s") for i in range(4)]
    store.append("problems", [problem_row(p) for p in made])
    order = [(("heldout" if i % 2 else "train"), problem_key(made[i])) for i in (3, 0, 2, 1)]
    digest = record_members(store, order)
    assert [p.id for _, p in problems(store, digest)] == ["p3", "p0", "p2", "p1"]
    assert [p.id for _, p in problems(store, digest, "heldout")] == ["p3", "p1"]
    assert record_members(store, order) == digest
