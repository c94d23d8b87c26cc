"""The views of the store count a trace once, however often and by however many verifiers it was judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from distill import keys
from distill.store import Store
from distill.store.records import problem_row, trace_row, verdict_row
from distill.types import Finish, Problem, Sampling, Trace, Verdict

START = datetime(2026, 1, 1, tzinfo=UTC)
PROBLEM = Problem("sums/add", "2 + 2", "4", "math", "sums", licence="MIT")
RELICENSED = replace(PROBLEM, licence="CC0-1.0")


def trace(index: int, tokens: int) -> Trace:
    return Trace(
        key=keys.trace_key(PROBLEM, "teacher", Sampling(), index), model="teacher", engine="e",
        sampling=Sampling(), sample_index=index, prompt="2 + 2", thinking="", answer="4", closed=True,
        thinking_tokens=tokens, answer_tokens=0, prompt_ids=(), token_ids=(), logprobs=None, finish=Finish.STOP,
    )  # fmt: skip


def judge(store: Store, traces: Sequence[Trace], verdicts: Sequence[Verdict], problem: Problem, when: int) -> None:
    key = keys.problem_key(problem)
    rows = []
    for one, verdict in zip(traces, verdicts, strict=True):
        name = keys.verdict_key(one.key, key, verdict.verifier, verdict.version, "{}")
        rows.append(verdict_row(name, one.key, key, verdict, {}) | {"created": START + timedelta(hours=when)})
    store.append("problems", [problem_row(problem)])
    store.append("verdicts", rows)
    store.ingest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two traces. The first version of a verifier called one wrong and one right; the second called both right, for two
    records of the problem. Another verifier had called both wrong before."""
    made = Store(tmp_path)
    traces = [trace(0, 10), trace(1, 30)]
    made.append("traces", [trace_row(one, keys.prompt_key(PROBLEM)) for one in traces])
    made.append("calls", [{"call_id": one.key, "request_key": one.key, "cost": Decimal(1)} for one in traces])
    right = replace(Verdict.correct("equal"), verifier="math", version="1")
    wrong = replace(Verdict.incorrect("another"), verifier="math", version="1")
    judge(made, traces, [replace(wrong, verifier="exact")] * 2, PROBLEM, 0)
    judge(made, traces, [wrong, right], PROBLEM, 1)
    judge(made, traces, [replace(right, version="2")] * 2, PROBLEM, 2)
    judge(made, traces, [replace(right, version="2")] * 2, RELICENSED, 3)
    return made


def test_pass_rates_use_the_newest_verdict_of_each_verifier(store: Store) -> None:
    rows = store.rows("SELECT verifier, traces, correct, pass_rate FROM pass_rates ORDER BY ALL")
    math = {"verifier": "math", "traces": 2, "correct": 2, "pass_rate": 1.0}
    assert rows == [{"verifier": "exact", "traces": 2, "correct": 0, "pass_rate": 0.0}, math, math]


def test_prices_count_a_trace_once(store: Store) -> None:
    assert store.rows("SELECT traces, correct, tokens, tokens_per_correct FROM token_prices") == [
        {"traces": 2, "correct": 2, "tokens": 40, "tokens_per_correct": 20.0}
    ]
    (price,) = store.rows("SELECT traces, correct, cost, cost_per_correct FROM answer_prices")
    assert price == {"traces": 2, "correct": 2, "cost": Decimal(2), "cost_per_correct": 1.0}


def test_shortest_correct_lists_one_trace_per_problem(store: Store) -> None:
    (row,) = store.rows("SELECT trace_key, tokens FROM shortest_correct")
    assert row == {"trace_key": trace(0, 10).key, "tokens": 10}
