"""A judge as a stage: beside rules on the same traces, stopped by a cap, killed, and never paid twice."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from chat_server import Handler, Server, reply, serving
from command import Command
from test_verifier_judge import honest, material

from distill import catalog
from distill.engines import pacing
from distill.store import Store
from pipeline import config, runner
from pipeline.errors import CapReached, InputError, PipelineError, Stopped
from pipeline.events import Listener
from pipeline.files import TEMPORARY
from pipeline.plan import StagePlan, plan
from pipeline.workspace import Workspace

ROOT = Path(__file__).parents[1]
KEY = "sk-test-0123456789abcdef"
PIPELINE = """\
name: judged
stages:
  import: {file: rows.jsonl, teacher: someone, prompt: q, answer: said, reference: a}
  rules: {kind: verify, traces: import}
  judged:
    kind: verify
    traces: import
    verifier:
      judge:
        model: tiny
        engine: {kind: openai, base_url: "URL", key_from: TEST_KEY, price_output: 10000.0, retries: 0, concurrency: 2}
        sampling: {max_tokens: 100}
"""
ROWS, FINISHED = 12, 4


class RecordingListener(Listener):
    def __init__(self) -> None:
        self.figures: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def progress(self, stage: str, done: int, total: int | None, figures: Any) -> None:
        if stage == "judged":
            self.figures.append(dict(figures))

    def note(self, stage: str, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEST_KEY", KEY)
    monkeypatch.setattr(pacing, "FIRST_PAUSE", 0.01)
    with serving() as server:
        server.otherwise = answer
        yield server


def answer(handler: Handler) -> None:
    """Judges every answer rightly except number 3, which it always accepts."""
    pieces = material(handler.body["messages"][-1]["content"])
    reply("VERDICT: correct" if pieces["answer"].startswith("3:") else honest(pieces))(handler)


@pytest.fixture
def here(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"q": f"{n} x 7", "said": f"{n}: it is \\boxed{{{7 * n + n % 2}}}", "a": str(7 * n)} for n in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.yaml").write_text(PIPELINE.replace("URL", server.url))
    return tmp_path


def load(here: Path, *overrides: str) -> tuple[config.PipelineSpec, Workspace]:
    return config.load(here / "p.yaml", catalog.stage, overrides=overrides), Workspace(here / "run")


def run(
    here: Path, *overrides: str, listener: Listener | None = None, targets: tuple[str, ...] = ("judged",)
) -> dict[str, Any]:
    spec, workspace = load(here, *overrides)
    done = runner.run(spec, workspace, listener or Listener(), lambda: False, targets)
    return dict(done[-1].manifest.figures)


def planned(here: Path, *overrides: str) -> StagePlan:
    return plan(*load(here, *overrides))[-1]


SETTING = "judged.verifier.judge"


def test_verdicts_of_a_judge_and_of_rules_can_be_compared(here: Path, server: Server) -> None:
    run(here, f"{SETTING}.engine.price_output=0.0", targets=())
    rows = Store(here / "run").rows(
        "SELECT p.prompt, a.outcome AS rules, b.outcome AS judged FROM verdicts a JOIN verdicts b USING (trace_key) "
        "JOIN problems p ON a.problem_key = p.problem_key WHERE a.verifier = 'math' AND b.verifier = 'judge'"
    )
    assert len(rows) == ROWS
    assert [row for row in rows if row["rules"] != row["judged"]] == [
        {"prompt": "3 x 7", "rules": "incorrect", "judged": "correct"}
    ]


def test_calls_tokens_and_cost_are_forecast_shown_and_recorded(here: Path, server: Server) -> None:
    for _ in range(2):  # before there are traces, and after
        ahead = planned(here).forecast
        assert ahead is not None and ahead.figures == {"calls": 12, "max_tokens": 1200, "max_cost": 12.0}
        run(here, "judged.verifier=exact")
    listener = RecordingListener()
    figures = run(here, listener=listener)
    spent = {"judge_calls": 12, "judge_prompt_tokens": 120, "judge_tokens": 240, "cost": 2.4}
    assert spent.items() <= figures.items() and spent.items() <= listener.figures[-1].items()
    assert any("12 answers" in note and "cost 2.4" in note for note in listener.notes)
    assert planned(here).status == "cached"


def test_another_rubric_judges_again_but_another_price_does_not(here: Path, server: Server) -> None:
    run(here)
    assert planned(here, f"{SETTING}.engine.max_cost=99.0", f"{SETTING}.engine.concurrency=1").status == "cached"
    assert planned(here, f"{SETTING}.mode=reference").status == "cached"
    assert planned(here, f"{SETTING}.rubric='Be kind.'").status == "will run"
    run(here, f"{SETTING}.rubric='Be kind.'")
    assert sum(server.asked.values()) == 2 * ROWS
    run(here)
    assert sum(server.asked.values()) == 2 * ROWS
    rows = Store(here / "run").rows("SELECT settings FROM verdicts WHERE verifier = 'judge'")
    assert len(rows) == 2 * ROWS and KEY not in str(rows) and "TEST_KEY" not in str(rows)


def test_a_cap_stops_the_judge_and_a_higher_one_continues(here: Path, server: Server) -> None:
    with pytest.raises(CapReached) as caught:
        run(here, f"{SETTING}.engine.max_cost=2.0")
    assert caught.value.exit_code == 3
    kept = Store(here / "run").rows("SELECT count(*) AS n FROM verdicts WHERE verifier = 'judge'")[0]["n"]
    assert 0 < kept == sum(server.asked.values()) < ROWS
    assert planned(here).status == "partly done"
    figures = run(here, f"{SETTING}.engine.max_cost=50.0")
    assert figures["judge_calls"] == ROWS and set(server.asked.values()) == {1}


def test_finished_verdicts_are_kept_when_the_endpoint_goes_down(here: Path, server: Server) -> None:
    def failing(handler: Handler) -> None:
        handler.send(500, "out") if len(server.asked) > 5 else answer(handler)

    server.otherwise = failing
    with pytest.raises(PipelineError, match="HTTP 500"):
        run(here, f"{SETTING}.engine.concurrency=1")
    kept = Store(here / "run").rows("SELECT outcome FROM verdicts WHERE verifier = 'judge'")
    assert len(kept) == 5 and "unverifiable" not in str(kept)
    server.otherwise = answer
    assert run(here)["correct"] == ROWS // 2 + 1
    assert sorted(server.asked.values()) == [1] * 11 + [2]


def test_a_judge_that_is_asked_to_stop_resumes_without_repeats(here: Path, server: Server) -> None:
    run(here, "judged.verifier=exact")
    spec, workspace = load(here, f"{SETTING}.engine.concurrency=1")
    with pytest.raises(Stopped):
        runner.run(spec, workspace, Listener(), lambda: len(server.asked) > 4, ["judged"])
    asked = sum(server.asked.values())
    assert 4 < asked < ROWS
    run(here)
    assert sum(server.asked.values()) <= ROWS + 1  # the one that was in flight


def test_after_a_kill_no_finished_verdict_is_requested_again(here: Path, server: Server) -> None:
    """SIGKILL when the judge has answered some calls and hangs on two: only those are requested again."""
    turns, release = itertools.count(1), threading.Event()

    def slow(handler: Handler) -> None:
        if next(turns) > FINISHED:
            release.wait(60)
        answer(handler)

    server.otherwise = slow
    command = ("run", "judged", "--pipeline", "p.yaml", "--workspace", "run", "--json")
    process = Command(here, *command)
    deadline = time.monotonic() + 60
    while judged(here) < FINISHED:
        assert process.poll() is None and time.monotonic() < deadline, "what was judged waits for the judge"
        time.sleep(0.05)
    process.kill()
    server.otherwise = answer
    release.set()
    assert KEY not in "".join(Command(here, *command).ended())
    rows = Store(here / "run").rows("SELECT evidence FROM verdicts WHERE verifier = 'judge'")
    assert len(rows) == ROWS and KEY not in str(rows)
    assert sum(server.asked.values()) <= ROWS + 2


def judged(here: Path) -> int:
    """How many of the judge's verdicts are durable."""
    import pyarrow.parquet as pq

    durable: set[str] = set()
    for shard in (here / "run").glob("**/verdicts/*.parquet"):
        with suppress(FileNotFoundError):  # it was moved to the journal meanwhile
            if not shard.name.startswith(TEMPORARY):
                rows = pq.read_table(shard, columns=["verdict_key", "verifier"]).to_pylist()
                durable |= {row["verdict_key"] for row in rows if row["verifier"] == "judge"}
    return len(durable)


@pytest.mark.parametrize(
    ("verifier", "said"),
    [
        ("{judge: {modell: tiny}}", "judge': model: is missing|unknown key"),
        ("judge", "judge': model: is missing"),
        ("{all: [math, {judge: {model: m, samples: 2}}]}", "temperature above 0"),
        ("{jugde: {model: m}}", "did you mean 'judge'"),
    ],
)
def test_wrong_settings_of_a_judge_are_reported_with_their_line(here: Path, verifier: str, said: str) -> None:
    text = (here / "p.yaml").read_text().split("    verifier:")[0]
    (here / "p.yaml").write_text(f"{text}    verifier: {verifier}\n")
    with pytest.raises(InputError, match=said) as caught:
        load(here)
    assert str(caught.value).startswith(f"{here}/p.yaml:8: ") and "\n" not in str(caught.value)


def test_a_problem_cannot_name_a_judge_as_its_verifier(here: Path) -> None:
    (here / "p.yaml").write_text((here / "p.yaml").read_text().replace("reference: a", "reference: a, verifier: judge"))
    with pytest.raises(InputError, match=r"p\.yaml:3: .*model: is missing"):
        load(here)


def test_a_missing_model_of_a_judge_is_reported_by_the_plan(here: Path) -> None:
    text = (here / "p.yaml").read_text().split("    verifier:")[0]
    (here / "p.yaml").write_text(f"{text}    verifier: {{judge: {{model: ./nowhere}}}}\n")
    with pytest.raises(InputError, match=r"\./nowhere"):
        planned(here)


def test_the_example_in_the_design_note_loads_and_plans(tmp_path: Path) -> None:
    text = (ROOT / "docs/design/006-judge.md").read_text().split("```yaml\n")[1].split("```")[0]
    (tmp_path / "p.yaml").write_text(text)
    spec = config.load(tmp_path / "p.yaml", catalog.stage)
    (judged,) = [item for item in plan(spec, Workspace(tmp_path / "run")) if item.spec.name == "judged"]
    assert judged.forecast is not None and judged.forecast.figures["calls"] == 200
