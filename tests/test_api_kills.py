"""Generate and verify against a misbehaving server, killed at random moments: the server's log is the evidence.

One run is left alone; another is killed (SIGKILL) repeatedly and then finished. The stores must be equal row for row,
and only samples in flight at a kill may have been answered twice. To run it at the scale that the project promises:

    DISTILL_KILLS=50 DISTILL_KILL_SAMPLES=2000 pytest -q tests/test_api_kills.py
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import Handler, cut, malformed, reply, serving, status, streamed
from command import Command
from killed_runs import finish, start

from distill.store import Store

KILLS = int(os.environ.get("DISTILL_KILLS", "2"))
SAMPLES = int(os.environ.get("DISTILL_KILL_SAMPLES", "240"))
CONCURRENCY = 8
KEY = "sk-test-0123456789abcdef"
YAML = """\
name: killed
workspace: WORKSPACE
stages:
  problems: {sources: [{file: p.jsonl, prompt: q, reference: a, verifier: exact}]}
  generate:
    problems: problems
    teacher: tiny
    engine:
      {kind: openai, base_url: "URL", key_from: TEST_KEY, concurrency: 8, retries: 9, price_input: 0.5,
       price_cached_input: 0.05, price_output: 1.7, max_cost: 1000}
    sampling: {max_tokens: 64}
    samples: 2
  verify: {traces: generate}
"""
TIMES = {"seconds", "created"}
PROMPT_TOKENS = 10


class Witness:
    """Answers each sample by a pure function of the sample and of how often it was requested before, and counts."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.reset()

    def reset(self) -> None:
        with self.lock:
            self.asked: Counter[tuple[str, int]] = Counter()
            self.answered: Counter[tuple[str, int]] = Counter()
            self.billed = 0

    def act(self, handler: Handler) -> None:
        prompt, seed = handler.body["messages"][-1]["content"], handler.body["seed"]
        sample = prompt, seed
        with self.changed:
            turn = self.asked[sample]
            self.asked[sample] += 1
            self.changed.notify_all()
        chance = random.Random(f"{prompt} {seed} {turn}").random() if turn < 3 else 1.0
        threading.Event().wait(0.002 + 0.01 * random.Random(str(seed)).random())
        if chance < 0.03:
            return status(429, "slow down", Retry_After="0.02")(handler)
        if chance < 0.06:
            return status(500, "broken", Retry_After="0.02")(handler)
        tokens = 5 + seed % 50
        with self.lock:
            self.billed += PROMPT_TOKENS + tokens
        if chance < 0.08:
            return (cut if seed % 2 else malformed)(handler)
        self._answer(handler, prompt, seed, tokens)
        with self.lock:
            self.answered[sample] += 1
        return None

    def _answer(self, handler: Handler, prompt: str, seed: int, tokens: int) -> None:
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens}
        thinking, answer = f"thinking of {seed}", str(int(prompt.split()[0]) + seed % 2)
        if seed % 3 == 0:
            reply(answer, usage=usage, reasoning=thinking)(handler)
        elif seed % 3 == 1:
            streamed({"reasoning_content": thinking}, {"content": answer}, usage=usage)(handler)
        else:
            streamed({"content": f"<think>{thinking}"}, finish="length", usage=usage)(handler)

    def wait_for(self, calls: int, process: Command) -> None:
        """Wait until ``calls`` calls were made in total, or the process has ended."""
        with self.changed:
            while sum(self.asked.values()) < calls and process.poll() is None:
                self.changed.wait(0.2)


@pytest.fixture
def witness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Witness]:
    monkeypatch.setenv("TEST_KEY", KEY)
    rows = [{"q": f"{n} + 0 = ?", "a": str(n)} for n in range(SAMPLES // 2)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    witness = Witness()
    with serving() as server:
        server.otherwise = witness.act
        for name in ("alone", "killed"):
            text = YAML.replace("WORKSPACE", name).replace("URL", server.url)
            (tmp_path / f"{name}.yaml").write_text(text)
        yield witness


def kill_in_generate(directory: Path, witness: Witness, calls: int, delay: float) -> None:
    process = start(directory, "killed")
    witness.wait_for(calls, process)
    threading.Event().wait(delay)
    process.kill()


def kill_in_verify(directory: Path, delay: float) -> None:
    process = start(directory, "killed")
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "start" and event["stage"] == "verify":
            threading.Event().wait(delay)
            break
    process.kill()


def contents(directory: Path) -> dict[str, list[dict[str, Any]]]:
    store = Store(directory)
    found = {}
    for table, key in (("problems", "problem_key"), ("traces", "trace_key"), ("verdicts", "verdict_key"),
                       ("members", "collection, position")):  # fmt: skip
        rows = store.rows(f"SELECT * FROM {table} ORDER BY {key}")
        found[table] = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    return found


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_the_same_and_pays_nothing_twice(tmp_path: Path, witness: Witness) -> None:
    assert KEY not in finish(tmp_path, "alone")
    whole_run = sum(witness.asked.values())
    assert all(count == 1 for count in witness.answered.values()) and len(witness.answered) == SAMPLES
    witness.reset()

    chance = random.Random(4)
    for place in sorted(chance.random() for _ in range(KILLS)):
        if place < 0.9:
            kill_in_generate(tmp_path, witness, int(place / 0.9 * whole_run), chance.uniform(0, 0.05))
        else:
            kill_in_verify(tmp_path, chance.uniform(0, 0.2))
    assert KEY not in finish(tmp_path, "killed")

    expected, found = contents(tmp_path / "alone"), contents(tmp_path / "killed")
    for table in expected:
        assert found[table] == expected[table], table
    assert len(found["traces"]) == len(found["verdicts"]) == SAMPLES == len(witness.answered)
    twice = sum(count - 1 for count in witness.answered.values())
    assert twice <= KILLS * CONCURRENCY
    (spent,) = Store(tmp_path / "killed").rows(
        "SELECT count(*) FILTER (outcome = 'answered') AS answered, sum(prompt_tokens + tokens) AS tokens FROM calls"
    )
    assert SAMPLES <= spent["answered"] <= sum(witness.answered.values())
    assert spent["tokens"] >= witness.billed  # what may have been billed is never forgotten
    everything = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert everything and not any(KEY.encode() in path.read_bytes() for path in everything)
    print(f"{KILLS} kills, {SAMPLES} samples, {sum(witness.asked.values())} calls, {twice} answered twice")
