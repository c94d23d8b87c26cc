"""Generate and verify with the embedded teacher, killed at random moments: too expensive for every day.

The run left alone and the one that was killed (SIGKILL, the whole process group) must be equal row for row, texts too.
Nothing durable may have been made again: the only progress that a killed run had reported and its successor lacked is
what it finished within the last half second. Each kill costs the start of a process with torch in it, so this runs
only on request (`make test-all` does a few kills). To run it at the scale that the project promises:

    DISTILL_ENGINE_KILLS=50 DISTILL_KILL_SAMPLES=2000 pytest -q -s tests/test_engine_kills.py
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from killed_runs import finish, start

from distill.store import Store
from pipeline.files import TEMPORARY

KILLS = int(os.environ.get("DISTILL_ENGINE_KILLS", "0"))
SAMPLES = int(os.environ.get("DISTILL_KILL_SAMPLES", "240"))
YAML = """\
name: killed
workspace: WORKSPACE
stages:
  problems: {sources: [{family: calc, train: PROBLEMS}]}
  generate:
    problems: problems
    teacher: embedded:teacher
    engine: {kind: transformers, workers: 1}
    sampling: {temperature: 0.8, max_tokens: 96}
    samples: 2
  verify: {traces: generate}
"""
TIMES = {"seconds", "created"}


def kill_when(directory: Path, stage: str, done: int, delay: float) -> int:
    """Kill the run ``delay`` seconds after ``stage`` has reported ``done`` rows; returns how many it reported."""
    process, reported = start(directory, "killed"), 0
    for line in process.stdout:
        event = json.loads(line)
        if event.get("stage") == stage and event["event"] in ("start", "progress"):
            reported = max(reported, event.get("done", 0))
            if reported >= done:
                break
    time.sleep(delay)
    process.kill()
    return reported


def kill_after(directory: Path, delay: float) -> int:
    """Kill the run after ``delay`` seconds, most likely while it starts."""
    process = start(directory, "killed")
    time.sleep(delay)
    process.kill()
    return 0


def durable(workspace: Path) -> int:
    """The number of traces on disk, whether ingested into the store or not."""
    keys: set[str] = set()
    for path in (*workspace.glob("shards/traces/*.parquet"), *workspace.glob("journal/traces/*.parquet")):
        if not path.name.startswith(TEMPORARY):
            keys.update(pq.read_table(path, columns=["trace_key"]).column(0).to_pylist())
    return len(keys)


def contents(workspace: Path) -> dict[str, list[dict[str, Any]]]:
    store = Store(workspace)
    tables = {"problems": "problem_key", "traces": "trace_key", "verdicts": "verdict_key",
              "members": "collection, position"}  # fmt: skip
    found = {table: store.rows(f"SELECT * FROM {table} ORDER BY {key}") for table, key in tables.items()}
    return {
        table: [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
        for table, rows in found.items()
    }


@pytest.mark.slow
@pytest.mark.skipif(not KILLS, reason="each kill costs a start of torch; DISTILL_ENGINE_KILLS=50 asks for it")
def test_a_run_killed_at_random_moments_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    for name in ("alone", "killed"):
        text = YAML.replace("WORKSPACE", name).replace("PROBLEMS", str(SAMPLES // 2))
        (tmp_path / f"{name}.yaml").write_text(text)
    finish(tmp_path, "alone")
    chance = random.Random(7)
    lost: list[int] = []
    for place in sorted(chance.random() for _ in range(KILLS)):
        if chance.random() < 0.2:
            reported = kill_after(tmp_path, chance.uniform(0, 10))
        elif place < 0.9:
            reported = kill_when(tmp_path, "generate", int(place / 0.9 * SAMPLES), chance.uniform(0, 1))
        else:
            reported = kill_when(tmp_path, "verify", 0, chance.uniform(0, 1))
        there = durable(tmp_path / "killed")
        lost.append(max(reported - there, 0) if place < 0.9 else 0)
        print(f"killed at {place:.2f}: told of {reported}, durable {there}", flush=True)
    finish(tmp_path, "killed")
    expected, found = contents(tmp_path / "alone"), contents(tmp_path / "killed")
    for table in expected:
        assert found[table] == expected[table], table
    assert len(found["traces"]) == len(found["verdicts"]) == SAMPLES
    assert max(lost) <= 200, lost  # what finishes in the half second between two appends, on any machine
    print(f"{KILLS} kills, {SAMPLES} samples; finished and told of, then made again: {sum(lost)}, at most {max(lost)}")
