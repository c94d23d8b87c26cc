"""Traces are kept only in the journal's files: none is lost, duplicated or changed, whatever happens to the database."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.store import Store, filed, shards
from pipeline.errors import InputError


def rows(*keys: str, text: str = "so {} it is") -> list[dict[str, Any]]:
    return [{"trace_key": key, "prompt_key": "p", "thinking": text.format(key), "token_ids": [1, 2]} for key in keys]


def texts(store: Store) -> dict[str, str]:
    found = store.rows("SELECT trace_key, thinking FROM traces")
    assert len({row["trace_key"] for row in found}) == len(found), "a trace is there twice"
    return {row["trace_key"]: row["thinking"] for row in found}


def files(store: Store) -> list[str]:
    return sorted(path.name for path in (store.journal / "traces").glob("*.parquet"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Low limits, so that files soon count as large and as many."""
    monkeypatch.setattr(filed, "LARGE", 3)
    monkeypatch.setattr(filed, "MANY", 3)
    monkeypatch.setattr(filed, "GROUP", 5)


batch = st.lists(st.sampled_from("abcdefghij"), max_size=6).map(lambda keys: ("append", keys))
steps = st.lists(
    batch | st.sampled_from(["ingest", "mend", "lose", "save", "put back"]).map(lambda s: (s, [])), max_size=14
)


@pytest.mark.usefixtures("small")
@settings(max_examples=12, deadline=None)
@given(steps=steps)
def test_of_traces_with_one_key_the_first_appended_is_kept(
    steps: list[tuple[str, list[str]]], tmp_path_factory: Any
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    saved, expected = store.path.parent / "saved", {}
    for number, (step, keys) in enumerate(steps):
        if step == "append":
            store.append("traces", rows(*keys, text=f"{{}} of batch {number}"))
            for key in keys:
                expected.setdefault(key, f"{key} of batch {number}")
        elif step == "lose":
            store.path.unlink(missing_ok=True)
        elif step == "save" and store.path.exists():
            shutil.copy(store.path, saved)
        elif step == "put back" and saved.exists():
            shutil.copy(saved, store.path)
            store.mend()  # as at the start of every run
        elif step in ("ingest", "mend"):
            getattr(store, step)()
    store.ingest()
    store.mend()
    assert texts(store) == expected
    assert not shards.pending(store.shards, "traces")
    assert sum(shards.count(p) for p in shards.pending(store.journal, "traces")) == len(expected)


WRITER = """
import sys
from pathlib import Path
from distill.store import Store, filed
filed.LARGE, filed.MANY = 3, 3
store = Store(Path(sys.argv[1]))
for n in range(10_000):
    store.append("traces", [{"trace_key": f"{n}-{i}", "thinking": f"{n}-{i} " * 50} for i in range(1 + n % 4)])
    print(n, flush=True)
    store.ingest()
"""


@pytest.mark.usefixtures("small")
def test_a_killed_writer_loses_and_duplicates_no_trace(tmp_path: Path) -> None:
    for attempt in range(2):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout
        printed = [writer.stdout.readline() for _ in range(6 + 5 * attempt)]
        writer.send_signal(signal.SIGKILL)
        last = int(((writer.communicate()[0]).splitlines() or printed)[-1])
        store = Store(tmp_path)
        store.mend()
        store.ingest()
        found = texts(store)
        assert {f"{n}-{i}" for n in range(last + 1) for i in range(1 + n % 4)} <= set(found)
        assert all(text == f"{key} " * 50 for key, text in found.items())


@pytest.mark.usefixtures("small")
def test_small_files_are_merged_and_large_ones_left_as_they_are(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("traces", rows(*"abc"))
    (large,) = shards.pending(store.shards, "traces")
    store.ingest()
    assert files(store) == [large.name]
    for key in "defghijkl":
        store.append("traces", rows(key))
        store.ingest()
        assert len(files(store)) <= 1 + 3 + 2
    assert large.name in files(store)
    assert set(texts(store)) == set("abcdefghijkl")


@pytest.mark.parametrize("damage", ["taken away", "cut short"])
def test_traces_of_a_lost_journal_file_are_reported_and_can_be_made_again(damage: str, tmp_path: Path) -> None:
    notes: list[str] = []
    store = Store(tmp_path, notes.append)
    for keys in ("ab", "c"):
        store.append("traces", rows(*keys))
        store.ingest()
    lost = store.journal / "traces" / files(store)[0]
    if damage == "taken away":
        lost.unlink()
    else:
        os.truncate(lost, lost.stat().st_size // 2)
    with pytest.raises(InputError, match=r"damaged: .*the next `distill run` remakes it"):
        texts(store)
    store.mend()
    assert "2 traces are lost, as their files are missing or truncated" in notes[-1]
    assert texts(store) == {"c": "so c it is"}
    store.append("traces", rows("a"))
    store.ingest()
    assert set(texts(store)) == {"a", "c"}


def test_a_workspace_may_be_moved(tmp_path: Path) -> None:
    store = Store(tmp_path / "here, [1] it's")
    store.append("traces", rows("a"))
    store.ingest()
    store.path.parent.rename(tmp_path / "there")
    assert set(texts(Store(tmp_path / "there"))) == {"a"}


READER = """
import sys
from pathlib import Path
from distill.store import Store
with Store(Path(sys.argv[1])).snapshot() as still:
    print("ready", flush=True)
    sys.stdin.readline()
    print(*sorted(row["thinking"] for row in still.rows("SELECT thinking FROM traces")), sep=";", flush=True)
"""


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    store = Store(tmp_path)
    store.append("traces", rows("a"))
    store.ingest()
    command = [sys.executable, "-c", READER, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def test_a_snapshot_does_not_block_writers_and_does_not_change(tmp_path: Path, reader: subprocess.Popen[str]) -> None:
    store = Store(tmp_path)
    store.append("traces", rows("b"))
    assert store.ingest(patience=0.0) == {"traces": 1}
    (store.journal / "traces" / files(store)[0]).unlink()
    assert reader.communicate("go\n")[0] == "so a it is\n"
    assert not list(tmp_path.glob(".tmp-*"))


def test_sweep_deletes_the_snapshot_of_a_killed_process_and_keeps_a_live_one(
    tmp_path: Path, reader: subprocess.Popen[str]
) -> None:
    from pipeline.workspace import Workspace

    (directory,) = tmp_path.glob(".tmp-snapshot-*")
    os.utime(directory, (0, 0))
    Workspace(tmp_path).sweep()
    assert directory.exists()
    reader.kill()
    reader.communicate()
    Workspace(tmp_path).sweep()
    assert not directory.exists()
