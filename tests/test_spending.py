"""What a stage pays for is recorded through crashes and over runs, exactly, and never paid twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from chat_server import Handler, Server, reply, serving, streamed
from command import Command
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import catalog, spending
from distill.engines import calls as call_log
from distill.engines import openai, pacing
from distill.engines.calls import Call, CallEnd, CallLog, part_key
from distill.engines.chat import Reply
from distill.engines.options import OpenAIOptions
from distill.engines.prices import Bill
from distill.modelspec import Model
from distill.spending import Spending
from distill.store import Store
from distill.store.records import record_members
from distill.types import Finish, Request, Sampling
from pipeline import config, runner
from pipeline.errors import CapReached
from pipeline.events import Listener
from pipeline.plan import StagePlan, plan
from pipeline.workspace import Workspace

ROOT = Path(__file__).parents[1]
KEY = "sk-test-0123456789abcdef"
MOST = Bill(10, 0, 100, Decimal("1.1"))
PAID = Bill(10, 2, 30, Decimal("0.4"))
ANSWER = Reply("2 + 2", "4 \udfff".encode(errors="replace").decode(), Finish.STOP, PAID, 20, 0.5)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setattr(pacing, "FIRST_PAUSE", 0.01)
    with serving() as server:
        yield server


def opened(directory: Path, rows: list[Any], known: Any = None) -> CallLog:
    return CallLog(directory, {"account": "a", "model": "m"}, rows.extend, known)


steps = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["begin", "answer", "lose", "hand out"])), max_size=20)


@settings(max_examples=20, deadline=None)
@given(steps, st.integers(0, 200), st.booleans())
def test_calls_logged_before_a_kill_are_known_and_counted_once(
    steps: list[tuple[int, str]], torn: int, rotates: bool
) -> None:
    """The log is left as after a kill, with a torn last line as after a power cut, and opened twice."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_log, "SEGMENT_BYTES", 300 if rotates else 10**9)
        directory, rows = Path(name), []  # type: ignore[var-annotated]
        log, going, begun, answered = opened(directory, rows), dict[int, Call](), 0, set[str]()
        for n, (slot, step) in enumerate(steps):
            if step == "begin" and slot not in going:
                going[slot], begun = log.begin(f"key {n}", MOST), begun + 1
            elif step == "answer" and slot in going:
                answered.add(going[slot].key)
                log.end(going.pop(slot), CallEnd.ANSWERED, PAID, 0.5, ANSWER)
            elif step == "lose" and slot in going:
                log.end(going.pop(slot), CallEnd.LOST, MOST)
        newest = max(directory.glob("*.jsonl"))
        with open(newest, "ab") as file:
            file.write(b'["over", "x", "ans'[: torn % 19])
        copy = shutil.copytree(directory, Path(f"{name}-again"))
        again = opened(directory, rows)
        assert len(rows) == begun == len({row["call_id"] for row in rows})
        assert sum(row["outcome"] == "answered" for row in rows) == len(answered)
        lost = [row for row in rows if row["outcome"] == "lost"]
        assert all(row["cost"] == MOST.cost for row in lost) and len(lost) == begun - len(answered)
        assert again.replies == dict.fromkeys(answered, ANSWER)
        once_more: list[Any] = []
        assert opened(directory, once_more).replies == again.replies and not once_more
        known = sorted(answered)[:2]
        assert opened(copy, [], lambda keys: set(known)).replies.keys() == answered - set(known)
        shutil.rmtree(copy)


def test_a_closed_log_keeps_replies_that_were_not_handed_out(tmp_path: Path) -> None:
    rows: list[Any] = []
    log = opened(tmp_path, rows)
    for key in ("handed", "waiting", part_key("half", 0), part_key("half", 1)):
        log.end(log.begin(key, MOST), CallEnd.ANSWERED, PAID, 0.5, ANSWER)
    log.handed_out("handed")
    log.close()
    assert {row["request_key"] for row in rows} == {"handed", "waiting", "half"} and len(rows) == 4
    left = opened(tmp_path, rows)
    assert left.replies.keys() == {"waiting", "half", part_key("half", 1)} and len(rows) == 4
    for key in ("waiting", "half"):
        left.handed_out(key)
    left.close()
    assert not list(tmp_path.iterdir())


def test_a_response_that_was_continued_costs_all_of_its_calls(tmp_path: Path) -> None:
    store, pieces = Store(tmp_path), {"first": None, "second": "first", "whole": "second", "another": None}
    store.append("traces", [{"trace_key": key, "continues": before} for key, before in pieces.items()])
    store.append("calls", [
        {"call_id": key, "request_key": key, "prompt_tokens": 10, "tokens": 5, "cost": Decimal(n)}
        for n, key in enumerate(pieces, 1)
    ])  # fmt: skip
    members = record_members(store, [("problem", "whole")])
    assert spending.spent_on(store, members) == {"calls": 3, "paid_tokens": 45, "cost": 6.0}


def test_a_paid_reply_is_handed_out_and_not_requested_again(server: Server, tmp_path: Path) -> None:
    log = opened(tmp_path, [])
    log.end(log.begin("k1", MOST), CallEnd.ANSWERED, PAID, 0.5, ANSWER)  # the process is killed here
    requests = [Request(k, ({"role": "user", "content": k},), Sampling(max_tokens=100)) for k in ("k1", "k2")]
    options = OpenAIOptions(base_url=server.url, key_from="TEST_KEY")
    engine = openai.open(Model("m", "m"), options, print, lambda: opened(tmp_path, []))
    made = {c.key: c for c in engine.generate(requests)}
    engine.close()
    assert server.asked == {"k2": 1}
    assert (made["k1"].thinking_tokens, made["k1"].tokens, made["k1"].cost) == (20, 30, PAID.cost)


YAML = """\
name: paid
workspace: run
stages:
  problems: {sources: [{file: p.jsonl, prompt: q, reference: a, verifier: exact}]}
  generate:
    problems: problems
    teacher: tiny
    engine:
      {kind: openai, base_url: "URL", key_from: TEST_KEY, price_input: 1000, price_cached_input: 100,
       price_output: 10000, concurrency: 2}
    sampling: {max_tokens: 100}
"""
PROBLEMS = 20


@pytest.fixture
def here(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"{n:02} = ?", "a": str(n)} for n in range(PROBLEMS)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "p.yaml").write_text(YAML.replace("URL", server.url))
    details = {"prompt_tokens_details": {"cached_tokens": 4}}
    server.otherwise = reply(reasoning="hm", usage={"prompt_tokens": 10, "completion_tokens": 40, **details})
    return tmp_path


COST = Decimal("0.4064")  # 6 tokens at 1000, 4 at 100, 40 at 10000 a million


def load(here: Path, *overrides: str) -> tuple[config.PipelineSpec, Workspace]:
    return config.load(here / "p.yaml", catalog.stage, overrides=overrides), Workspace(here / "run")


def run(here: Path, *overrides: str) -> dict[str, Any]:
    spec, workspace = load(here, *overrides)
    return dict(runner.run(spec, workspace, Listener(), lambda: False)[-1].manifest.figures)


def planned(here: Path, *overrides: str) -> StagePlan:
    return plan(*load(here, *overrides))[-1]


def test_the_cost_is_stored_exactly(here: Path) -> None:
    figures = run(here)
    assert figures["calls"] == PROBLEMS and figures["cost"] == float(COST * PROBLEMS)
    store = Store(here / "run")
    (row,) = store.rows("SELECT * FROM spending")
    assert row["cost"] == COST * PROBLEMS and row["account"] == "generate" and row["unanswered"] == 0
    assert (row["prompt_tokens"], row["cached_tokens"], row["tokens"]) == (200, 80, 800)
    (price,) = store.rows("SELECT traces, cost FROM answer_prices")
    assert price == {"traces": PROBLEMS, "cost": COST * PROBLEMS}
    assert not list((here / "run/calls/generate").iterdir())
    assert not any(KEY.encode() in path.read_bytes() for path in here.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("cap", "higher", "unit"),
    [("max_cost=3", "max_cost=100", "cap of 3 is"), ("max_total_tokens=700", "max_total_tokens=9999", "700 tokens")],
)
def test_a_cap_counts_all_runs_of_the_stage(here: Path, server: Server, cap: str, higher: str, unit: str) -> None:
    with pytest.raises(CapReached, match=unit) as caught:
        run(here, f"generate.engine.{cap}")
    asked = sum(server.asked.values())
    assert 0 < asked < PROBLEMS and caught.value.exit_code == 3
    assert spending.spent(Store(here / "run"), "generate").cost == COST * asked
    with pytest.raises(CapReached, match="in all runs of this stage"):  # nothing of the cap is left
        run(here, f"generate.engine.{cap}")
    assert sum(server.asked.values()) == asked
    run(here, f"generate.engine.{higher}")
    assert set(server.asked.values()) == {1} and len(server.asked) == PROBLEMS


@pytest.mark.slow
def test_a_cap_counts_the_spending_of_a_killed_run(here: Path, server: Server) -> None:
    """Killed while two calls are in flight: their highest possible cost counts, and the cap holds."""
    hanging, release = threading.Event(), threading.Event()

    def act(handler: Handler) -> None:
        if len(server.asked) > 4:
            hanging.set()
            release.wait(60)
        answer(handler)

    answer, server.otherwise = server.otherwise, act
    cap = f"generate.engine.max_cost={COST * 4 + 2 * Decimal('1.2') + COST * 3}"
    process = Command(here, "run", "--pipeline", "p.yaml", "--set", cap)
    assert hanging.wait(60)
    process.kill()
    server.otherwise = answer
    release.set()
    again = Command(here, "run", "--pipeline", "p.yaml", "--set", cap)
    _, err = again.ended(3)
    assert "in all runs of this stage" in err
    (row,) = Store(here / "run").rows("SELECT * FROM spending")
    assert row["unanswered"] in (1, 2) and row["cost"] <= Decimal(cap.partition("=")[2])
    assert row["cost"] >= COST * (sum(server.asked.values()) - row["unanswered"])
    assert sum(count - 1 for count in server.asked.values()) <= 2  # the two that were in flight


def test_plan_forecasts_calls_tokens_money_and_time(here: Path, server: Server) -> None:
    ahead = planned(here).forecast
    assert ahead and ahead.figures == {"calls": 20, "max_tokens": 2000, "max_output_cost": 20.0}
    run(here, "generate.samples=1")
    for _ in range(2):  # the second time after the calls of the first
        ahead = planned(here, "generate.samples=3", "generate.engine.max_cost=50").forecast
        assert ahead is not None
        figures = dict(ahead.figures)
        assert figures.pop("seconds") >= 0 and figures.pop("max_cost") > 40
        assert figures == {
            "calls": 40, "max_tokens": 4000, "tokens": 1600, "cost": float(COST * 40),
            "cap_leaves": float(50 - COST * 20),
        }  # fmt: skip
    limited = planned(here, "generate.samples=3", "generate.engine.requests_per_minute=4").forecast
    assert limited and limited.figures["seconds"] == 600
    limited = planned(here, "generate.samples=3", "generate.engine.tokens_per_minute=100").forecast
    assert limited and limited.figures["seconds"] == 1200


def test_plan_counts_what_a_killed_run_has_spent(here: Path) -> None:
    run(here, "generate.samples=1")
    log = Spending(Store(here / "run"), "generate").open("m")
    log.end(log.begin("answered", MOST), CallEnd.ANSWERED, PAID, 0.5, ANSWER)
    log.begin("in flight", MOST)  # the process is killed here

    def left() -> float:
        ahead = planned(here, "generate.samples=2", "generate.engine.max_cost=50").forecast
        assert ahead is not None
        return float(ahead.figures["cap_leaves"])

    expected = float(50 - COST * PROBLEMS - PAID.cost - MOST.cost)
    assert left() == expected
    Spending(Store(here / "run"), "generate").open("m")  # the next run takes the log over
    assert left() == expected


def test_plan_prints_the_forecast(here: Path) -> None:
    from typer.testing import CliRunner

    from distill.cli.main import app

    run(here)
    asked = ["generate.samples=2", "generate.engine.max_cost=1000.5", "generate.engine.max_total_tokens=99999"]
    result = CliRunner().invoke(app, ["plan", "--pipeline", "p.yaml", *(f"--set={one}" for one in asked)])
    text = " ".join(result.output.split())
    assert re.search(
        r"20 of 40 traces left, about 800 tokens \(at most 2,000\), about 8\.128 to pay \(at most 21\.\d+\)", text
    ), text
    assert re.search(r"the cap leaves 9\d\d\.\d+, the cap leaves 9\d,\d+ tokens", text), "what matters most is cut off"


def test_an_aborted_call_is_billed_by_the_tokens_received(server: Server, tmp_path: Path) -> None:
    """The engine is closed in the middle of a stream: the server notices and stops. By then it has sent more than the
    system buffers, so the client has certainly begun to read."""
    begun, closed, sent = threading.Event(), threading.Event(), count()

    def pause() -> None:
        if next(sent) > 400:  # 25 MB
            begun.set()
            closed.wait(0.01)

    def endless(handler: Handler) -> None:
        try:
            streamed(*[{"content": "x" * 65_536}] * 10_000, pause=pause)(handler)
        except OSError:
            hung_up.set()

    hung_up = threading.Event()
    server.scripts = {"endless": [endless]}
    rows: list[Any] = []
    options = OpenAIOptions(base_url=server.url, key_from="TEST_KEY", price_output=Decimal(1))
    engine = openai.open(Model("m", "m"), options, print, lambda: opened(tmp_path, rows))
    request = Request("k", ({"role": "user", "content": "endless"},), Sampling(max_tokens=10**9))
    for _ in engine.generate([request], lambda: begun.wait(0.1)):
        pass
    engine.close()
    assert hung_up.wait(60)
    (row,) = rows
    assert row["outcome"] == "ended" and 0 < row["tokens"] < 10**9 / 2


def test_a_full_disk_ends_the_run_before_any_call(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    log = opened(tmp_path, [])
    assert log._segment
    real, log._segment.file = log._segment.file, os.open("/dev/full", os.O_WRONLY)
    options = OpenAIOptions(base_url=server.url, key_from="TEST_KEY")
    engine = openai.open(Model("m", "m"), options, print, lambda: log)
    with pytest.raises(Exception, match="no space left"):
        list(engine.generate([Request("k", ({"role": "user", "content": "k"},), Sampling())]))
    assert not server.seen
    os.close(log._segment.file)
    log._segment.file = real
    engine.close()


def test_judges_and_the_stage_have_separate_accounts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    account = Spending(store, "verify")
    logs = [account.open("m"), account.of("judge-1").open("m"), account.of("judge-2").open("n")]
    for n, log in enumerate(logs):
        for _ in range(n + 1):
            log.end(log.begin("k", MOST), CallEnd.LOST, replace(MOST, cost=Decimal(n + 1)))
        log.close()
    store.ingest()
    totals = [spending.spent(store, name).cost for name in ("verify", "verify/judge-1", "verify/judge-2", "nobody")]
    assert totals == [1, 4, 9, 0]


JUDGED = """\
  verify:
    traces: generate
    verifier:
      judge: {model: tiny, engine: {kind: openai, base_url: "URL", key_from: TEST_KEY, price_input: 1000,
              price_cached_input: 100, price_output: 10000, max_cost: 900, retries: 0}, sampling: {max_tokens: 50}}
"""
MEASURED = """\
  evaluate:
    problems: problems
    models: {it: tiny}
    split: train
    greedy: false
    samples: 1
    sampling: {temperature: 1.0, max_tokens: 100}
    engine: {kind: openai, base_url: "URL", key_from: TEST_KEY, price_input: 1000, price_cached_input: 100,
             price_output: 10000, max_cost: 900}
"""


def foreseen(here: Path, *overrides: str) -> dict[str, Any]:
    ahead = planned(here, *overrides).forecast
    assert ahead is not None
    return dict(ahead.figures)


def test_plan_forecasts_the_cost_of_an_evaluation(here: Path, server: Server) -> None:
    (here / "p.yaml").write_text((YAML[: YAML.index("  generate:")] + MEASURED).replace("URL", server.url))
    assert foreseen(here) == {"calls": 20, "max_tokens": 2000, "max_output_cost": 20.0, "cap_leaves": 900.0}
    run(here)
    figures = foreseen(here, "evaluate.samples=3")
    assert figures.pop("seconds") >= 0 and figures.pop("max_cost") > 40
    assert figures == {
        "calls": 40, "max_tokens": 4000, "tokens": 1600, "cost": float(COST * 40), "cap_leaves": float(900 - COST * 20),
    }  # fmt: skip


def test_plan_forecasts_the_cost_of_a_judge(here: Path, server: Server) -> None:
    (here / "p.yaml").write_text((YAML + JUDGED).replace("URL", server.url))
    assert foreseen(here) == {"calls": 20, "max_tokens": 1000, "max_output_cost": 10.0, "cap_leaves": 900.0}
    run(here)
    (asked,) = Store(here / "run").rows("SELECT * FROM spending WHERE starts_with(account, 'verify/judge-')")
    assert asked["calls"] == 20
    figures = foreseen(here, "verify.verifier.judge.mode=pairwise")
    assert (figures["calls"], figures["max_tokens"]) == (40, 2000)
    figures = foreseen(here, "generate.samples=2")
    assert figures.pop("seconds") >= 0
    assert figures == {
        "calls": 40, "max_tokens": 2000, "max_output_cost": 20.0, "tokens": 1600, "cost": float(2 * asked["cost"]),
        "cap_leaves": float(900 - asked["cost"]),
    }  # fmt: skip
